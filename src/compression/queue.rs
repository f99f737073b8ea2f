//! The order in which jobs have their turns.

use std::collections::VecDeque;

/// Jobs that have just come, and those of streams that a turn was not enough for: one of these and one of those, while
/// there are both. So who has come last, or has little to do, does not wait for the megabytes of all others, and
/// nobody waits for ever.
pub(super) struct Queue<T> {
    fresh: VecDeque<T>,
    long: VecDeque<T>,
    long_is_next: bool,
}

impl<T> Queue<T> {
    /// One that has just come.
    pub(super) fn push(&mut self, job: T) {
        self.fresh.push_back(job);
    }

    /// One of a stream that has had a turn, and needs more.
    pub(super) fn push_back(&mut self, job: T) {
        self.long.push_back(job);
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let (first, second) = match self.long_is_next {
            true => (&mut self.long, &mut self.fresh),
            false => (&mut self.fresh, &mut self.long),
        };
        if let Some(job) = first.pop_front() {
            self.long_is_next = !self.long_is_next;
            return Some(job);
        }
        second.pop_front()
    }

    /// Any of them.
    pub(super) fn peek(&self) -> Option<&T> {
        self.fresh.front().or(self.long.front())
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.long.len()
    }

    /// Those that have just come, of all.
    #[cfg(test)]
    pub(super) fn fresh(&self) -> usize {
        self.fresh.len()
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            fresh: VecDeque::new(),
            long: VecDeque::new(),
            long_is_next: false,
        }
    }
}

impl<T> IntoIterator for Queue<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<
        std::collections::vec_deque::IntoIter<T>,
        std::collections::vec_deque::IntoIter<T>,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.fresh.into_iter().chain(self.long)
    }
}

#[cfg(test)]
mod tests {
    use super::Queue;

    #[test]
    fn whoever_has_just_come_waits_for_two_others_at_most() {
        let mut queue = Queue::default();
        (0..100).for_each(|job| queue.push_back(job));
        for newcomer in 100..120 {
            queue.push(newcomer);
            assert!((0..3).any(|_| queue.pop() == Some(newcomer)), "{newcomer}");
        }
    }

    #[test]
    fn however_many_come_the_others_have_every_second_turn_in_their_order() {
        let mut queue = Queue::default();
        (0..10).for_each(|job| queue.push_back(job));
        let mut turns = Vec::new();
        for newcomer in 100..120 {
            queue.push(newcomer);
            turns.extend(queue.pop());
        }
        turns.retain(|job| *job < 100);
        assert_eq!(turns, (0..10).collect::<Vec<_>>());
        assert_eq!(queue.len(), 10);
    }

    #[test]
    fn all_of_one_kind_go_in_their_order() {
        let mut queue = Queue::default();
        for job in 0..5 {
            queue.push(job);
        }
        assert_eq!(queue.peek(), Some(&0));
        assert_eq!(
            (0..5).filter_map(|_| queue.pop()).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );
        for job in 5..10 {
            queue.push_back(job);
        }
        assert_eq!(queue.peek(), Some(&5));
        assert_eq!(queue.into_iter().collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
    }
}
