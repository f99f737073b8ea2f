//! The one error our bodies fail with.

use std::{error::Error as StdError, fmt, sync::Arc};

use crate::{
    outcome::Outcome,
    scope::{Connection, is_same, sources, told_whole},
};

/// Any error, owned: what fallible closures and inner bodies hand us.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// What closers and tasks return: `?` turns any error into the boxed one.
pub type TaskResult = Result<(), BoxError>;

/// A failure, shared between the body that yields it, the closers that see it and the report.
pub type Cause = Arc<dyn StdError + Send + Sync + 'static>;

/// What a body of this crate fails with: every cause that is known when it fails.
///
/// A cause is boxed once, where it arises, and shared from then on: the body yields it, each
/// closer sees the first in its [`Ending`](crate::Ending), the end report lists all. What fails behind
/// the error is in the report only: closers of `defer_after_end`, and a scope that holds keep open. Ask
/// for a concrete type with [`BodyError::downcast_ref`].
///
/// The first cause is the [`source`](StdError::source), and so what printers of error chains write behind the
/// error's own text, which only counts the causes. The alternate form (`{:#}`) tells all of it, the first
/// cause with its sources, then the others with theirs:
///
/// ```
/// # use bodyguard::TaskGroupBody;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use http_body_util::BodyExt;
///
/// let body = TaskGroupBody::new(|group, _tx| async move {
///     group.spawn_graceful(|cancel| async move {
///         cancel.cancelled().await;
///         Err("weather: not flushed".into())
///     })?;
///     tokio::task::yield_now().await;
///     Err("news: connection reset".into())
/// });
/// let error = body.collect().await.unwrap_err();
///
/// assert_eq!(error.to_string(), "response body failed (2 causes)");
/// assert_eq!(
///     format!("{error:#}"),
///     "response body failed: news: connection reset (also: weather: not flushed)",
/// );
/// assert_eq!(error.cause().to_string(), "news: connection reset");
/// assert_eq!(error.causes().len(), 2);
/// # }
/// ```
#[derive(Clone)]
pub struct BodyError {
    /// One pointer, since it stands in what each poll of a body returns.
    parts: Arc<Parts>,
}

#[derive(Clone)]
struct Parts {
    /// How the body ended: whoever passes the error on ends so, too.
    outcome: Outcome,
    /// Never empty.
    causes: Vec<Cause>,
    /// What came before it is written here: whoever passes the error on behind more of it waits for that.
    connection: Option<Connection>,
}

/// How many causes are told behind the first.
const MOST_NAMED: usize = 4;

impl BodyError {
    /// Wraps an error, once: a `BodyError` comes back as it was.
    ///
    /// The box that axum puts around the errors of a body says nothing, and is taken off. An error of
    /// another type with a `BodyError` among its sources is the first cause, in the place of the one it
    /// carries; the further causes stay further ones.
    pub fn new(error: impl Into<BoxError>) -> Self {
        match unboxed(error.into()).downcast::<BodyError>() {
            Ok(body_error) => *body_error,
            Err(error) => Self::from(Cause::from(error)),
        }
    }

    /// The first error of this concrete type, among the causes and their sources.
    ///
    /// Each cause is looked through to its root before the next, the error that an `io::Error` wraps
    /// included, but no further than 16 errors down. What a
    /// [`SourceError`](crate::task_group::SourceError) tells of is found so.
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        let mut all = self.causes().iter().flat_map(|cause| sources(&**cause));
        all.find_map(|error| error.downcast_ref())
    }

    /// The first cause, to be kept or shared.
    pub fn cause(&self) -> &Cause {
        &self.parts.causes[0]
    }

    /// All causes: the first, which decided, then the others in the order they were seen.
    ///
    /// They are those of [`EndReport::errors`](crate::EndReport::errors) so far. A body that is ended from
    /// outside (shutdown, cancellation, a stall) fails with that as its first cause, which is no error of
    /// the report's.
    pub fn causes(&self) -> &[Cause] {
        &self.parts.causes
    }

    /// How the body ended that failed with it: `Failed` where nobody said otherwise.
    pub(crate) fn outcome(&self) -> Outcome {
        self.parts.outcome
    }

    /// The error of a body that ended so.
    pub(crate) fn of(mut self, outcome: Outcome) -> Self {
        if self.parts.outcome != outcome {
            Arc::make_mut(&mut self.parts).outcome = outcome;
        }
        self
    }

    /// Where what came before it is written, if that is known and worth a wait.
    #[cfg(feature = "compression")]
    pub(crate) fn connection(&self) -> Option<&Connection> {
        self.parts.connection.as_ref()
    }

    /// The error behind what is written to this connection.
    pub(crate) fn behind(mut self, connection: &Connection) -> Self {
        Arc::make_mut(&mut self.parts).connection = Some(connection.clone());
        self
    }

    /// With these, known to differ from each other, behind its own causes.
    pub(crate) fn and(mut self, others: &[Cause]) -> Self {
        let known = |other: &&Cause| !self.causes().iter().any(|cause| is_same(cause, other));
        let new: Vec<_> = others.iter().filter(known).cloned().collect();
        if !new.is_empty() {
            Arc::make_mut(&mut self.parts).causes.extend(new);
        }
        self
    }
}

#[cfg(feature = "axum")]
fn unboxed(mut error: BoxError) -> BoxError {
    loop {
        error = match error.downcast::<axum::Error>() {
            Ok(boxed) => boxed.into_inner(),
            Err(other) => return other,
        };
    }
}

#[cfg(not(feature = "axum"))]
fn unboxed(error: BoxError) -> BoxError {
    error
}

impl From<Cause> for BodyError {
    fn from(cause: Cause) -> Self {
        let carried =
            |error: &(dyn StdError + 'static)| Some(error.downcast_ref::<Self>()?.clone());
        let carried = sources(&*cause).find_map(carried);
        let outcome = carried.as_ref().map_or(Outcome::Failed, Self::outcome);
        let causes = vec![cause];
        let connection = carried
            .as_ref()
            .and_then(|error| error.parts.connection.clone());
        let error = Self {
            parts: Arc::new(Parts {
                outcome,
                causes,
                connection,
            }),
        };
        match carried {
            Some(inner) => error.and(&inner.causes()[1..]),
            None => error,
        }
    }
}

impl fmt::Debug for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tuple = f.debug_tuple("BodyError");
        self.causes().iter().for_each(|cause| {
            tuple.field(cause);
        });
        tuple.finish()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("response body failed")?;
        let further = &self.causes()[1..];
        if !f.alternate() {
            // Its source is the first cause, and is told by whoever tells sources.
            return match further.len() {
                0 => Ok(()),
                more => write!(f, " ({} causes)", more + 1),
            };
        }
        f.write_str(": ")?;
        f.write_str(&told_whole(&**self.cause()))?;
        for (at, cause) in further.iter().take(MOST_NAMED).enumerate() {
            f.write_str(if at == 0 { " (also: " } else { "; " })?;
            f.write_str(&told_whole(&**cause))?;
        }
        match further.len() {
            0 => Ok(()),
            1..=MOST_NAMED => f.write_str(")"),
            all => write!(f, "; {} more)", all - MOST_NAMED),
        }
    }
}

impl StdError for BodyError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&**self.cause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_boxed_once_and_downcasts() {
        let io = std::io::Error::other("disk");
        let inner = BodyError::new(io);
        let again = BodyError::new(Box::new(inner) as BoxError);
        assert_eq!(
            again.downcast_ref::<std::io::Error>().unwrap().to_string(),
            "disk"
        );
    }

    fn cause(text: &str) -> Cause {
        Cause::from(BoxError::from(text))
    }

    fn texts(error: &BodyError) -> Vec<String> {
        error.causes().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn counts_its_causes_and_leaves_the_first_to_be_its_source() {
        let mut error = BodyError::from(cause("a"));
        assert_eq!(error.to_string(), "response body failed");
        error = error.and(&[cause("b")]);
        assert_eq!(error.to_string(), "response body failed (2 causes)");
        assert_eq!(error.source().unwrap().to_string(), "a");
        assert_eq!(texts(&error), ["a", "b"]);
    }

    #[test]
    fn tells_all_of_it_in_the_alternate_form() {
        let wrapped = |text: &str| std::io::Error::other(Around(text.into()));
        let mut error = BodyError::new(wrapped("a"));
        assert_eq!(format!("{error:#}"), "response body failed: around: a");
        let nested = Cause::from(BoxError::from(BodyError::new("behind")));
        error = error.and(&[Cause::from(BoxError::from(wrapped("b"))), nested]);
        assert_eq!(
            format!("{error:#}"),
            "response body failed: around: a (also: around: b; response body failed: behind)"
        );
        error = error.and(&[cause("c"), cause("d"), cause("e"), cause("f")]);
        let told = format!("{error:#}");
        assert!(told.ends_with("; c; d; 2 more)"), "{told}");
    }

    /// An error with another behind it.
    #[derive(Debug)]
    struct Around(BoxError);

    impl fmt::Display for Around {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("around")
        }
    }

    impl StdError for Around {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&*self.0)
        }
    }

    /// An error of an application that went wrong itself.
    #[derive(Debug)]
    enum Odd {
        Endless,
        Mute,
        Rootless,
        Fails,
    }

    impl fmt::Display for Odd {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Mute => panic!("no words"),
                Self::Fails => Err(fmt::Error),
                _ => write!(f, "{self:?}"),
            }
        }
    }

    impl StdError for Odd {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            match self {
                Self::Endless => Some(self),
                Self::Rootless => panic!("no root"),
                Self::Mute | Self::Fails => None,
            }
        }
    }

    #[test]
    fn errors_that_panic_or_never_end_are_told_as_far_as_they_go() {
        let causes =
            [Odd::Mute, Odd::Rootless, Odd::Endless, Odd::Fails].map(|odd| Around(odd.into()));
        let causes = causes.map(|error| Cause::from(BoxError::from(error)));
        let error = BodyError::from(causes[0].clone()).and(&causes[1..]);
        let told = format!("{error:#}");
        let begin = "response body failed: around: (its text panicked) (also: around: Rootless; around: Endless";
        assert!(told.starts_with(begin), "{told}");
        assert!(
            told.ends_with("around: Endless; around: (its text panicked))"),
            "{told}"
        );
        assert!(error.downcast_ref::<fmt::Error>().is_none());
    }

    #[test]
    fn finds_a_type_among_all_causes_and_keeps_each_once() {
        let io = Cause::from(BoxError::from(std::io::Error::other("disk")));
        let a = cause("a");
        let error = BodyError::from(a.clone()).and(&[a, io]);
        assert_eq!(texts(&error), ["a", "disk"]);
        assert!(error.downcast_ref::<std::io::Error>().is_some());
        assert!(error.downcast_ref::<fmt::Error>().is_none());
    }

    #[test]
    fn finds_a_type_behind_a_cause() {
        let io = std::io::Error::other(Around(Box::new(fmt::Error)));
        let error =
            BodyError::from(cause("a")).and(&[Cause::from(BoxError::from(Around(io.into())))]);
        assert!(error.downcast_ref::<Around>().is_some());
        assert!(error.downcast_ref::<std::io::Error>().is_some());
        assert!(error.downcast_ref::<fmt::Error>().is_some());
    }

    #[test]
    fn an_error_around_one_keeps_the_further_causes() {
        let inner = BodyError::from(cause("a")).and(&[cause("b"), cause("c")]);
        let wrapped = std::io::Error::other(std::io::Error::other(inner.clone()));
        let error = BodyError::new(wrapped);
        assert_eq!(texts(&error)[1..], ["b", "c"]);
        assert!(error.cause().is::<std::io::Error>());
        // The first cause is known already, by who carries it.
        assert_eq!(error.and(inner.causes()).causes().len(), 3);
    }

    #[test]
    fn is_no_larger_than_one_cause() {
        assert!(size_of::<BodyError>() <= size_of::<Cause>());
    }
}
