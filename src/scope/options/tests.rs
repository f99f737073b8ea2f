use std::{sync::Barrier, thread};

use super::*;

fn limited(seconds: u64) -> Arc<Options> {
    Arc::new(Options {
        closer_limit: Some(Duration::from_secs(seconds)),
        on_end: vec![Arc::new(|_| {})],
        ..Options::default()
    })
}

fn seconds(options: &Options) -> u64 {
    options.closer_limit().as_secs()
}

fn most(max: usize) -> Arc<Options> {
    Arc::new(Options {
        max_tasks: Choice::Layer(max),
        on_end: vec![Arc::new(|_| {})],
        ..Options::default()
    })
}

#[test]
fn a_merge_is_made_once() {
    let (outer, inner, innermost) = (limited(1), most(2), limited(3));
    let merged = inner.inside(&outer, Hooks::Both);
    assert_eq!((seconds(&merged), merged.on_end.len()), (1, 2));
    assert_eq!(merged.max_tasks.get(), Some(2));
    assert!(Arc::ptr_eq(&merged, &inner.inside(&outer, Hooks::Both)));
    let third = innermost.inside(&merged, Hooks::Both);
    assert_eq!((seconds(&third), third.on_end.len()), (3, 3));
    assert!(Arc::ptr_eq(&third, &innermost.inside(&merged, Hooks::Both)));
}

#[test]
fn another_neighbour_is_another_merge() {
    let (first, second, inner) = (limited(1), limited(2), most(2));
    for _ in 0..2 {
        assert_eq!(seconds(&inner.inside(&first, Hooks::Both)), 1);
        assert_eq!(seconds(&inner.inside(&second, Hooks::Both)), 2);
        assert_eq!(inner.inside(&first, Hooks::Inner).on_end.len(), 1);
    }
    assert!(!inner.inside(&first, Hooks::Both).passing);
    assert!(inner.inside(&second, Hooks::Both).passing);
}

/// One at the address of another that is gone would be taken for it.
#[test]
fn neighbours_that_come_and_go_are_told_apart() {
    let inner = most(2);
    for own in 0..1000 {
        assert_eq!(seconds(&inner.inside(&limited(own), Hooks::Both)), own);
    }
}

#[test]
fn what_is_made_for_one_request_is_not_remembered() {
    let (outer, inner) = (limited(1), most(2));
    let mut passing = Options::clone(&outer);
    passing.passing = true;
    let passing = Arc::new(passing);
    assert!(inner.inside(&passing, Hooks::Both).passing);
    assert!(inner.memo.0.get().is_none());
    assert!(!inner.inside(&outer, Hooks::Both).passing);
}

#[test]
fn options_that_are_changed_remember_nothing() {
    let (outer, inner) = (limited(1), most(2));
    inner.inside(&outer, Hooks::Both);
    let mut changed = Options::clone(&inner);
    changed.max_tasks = Choice::Layer(3);
    let merged = changed.inside(&outer, Hooks::Both);
    assert_eq!(merged.max_tasks.get(), Some(3));
}

/// A layer around itself, or two around each other: nothing keeps itself alive.
#[test]
fn layers_go_though_they_were_each_others_neighbours() {
    let (one, other) = (limited(1), most(2));
    one.inside(&one, Hooks::Both);
    other.inside(&one, Hooks::Both);
    limited(3).inside(&other, Hooks::Both);
    let both = [Arc::downgrade(&one), Arc::downgrade(&other)];
    drop((one, other));
    assert!(both.iter().all(|gone| gone.upgrade().is_none()));
    let (one, other) = (limited(1), most(2));
    one.inside(&other, Hooks::Both);
    other.inside(&one, Hooks::Both);
    let both = [Arc::downgrade(&one), Arc::downgrade(&other)];
    drop((one, other));
    assert!(both.iter().all(|gone| gone.upgrade().is_none()));
}

#[test]
fn two_at_once_get_the_same() {
    let (outer, inner) = (limited(1), most(2));
    let start = Barrier::new(2);
    let merge = || {
        start.wait();
        inner.inside(&outer, Hooks::Both)
    };
    let [one, other] = thread::scope(|threads| {
        [threads.spawn(merge), threads.spawn(merge)].map(|thread| thread.join().unwrap())
    });
    assert!(Arc::ptr_eq(&one, &other));
}
