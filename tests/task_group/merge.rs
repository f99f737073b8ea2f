//! Merged streams, their names and policies; the cap on concurrent tasks.

use std::{convert::Infallible, error::Error, future::pending, time::Duration};

use bodyguard::{
    Outcome, TaskGroup, TaskGroupBody,
    scope::{Failure, FailureKind},
    task_group::{SourceError, Sources},
};
use futures_util::{Stream, StreamExt, stream};

use crate::support::{App, Live, boom, drain, until};

fn every(millis: u64, name: &'static str) -> impl Stream<Item = Result<String, Infallible>> {
    stream::iter(0..3).then(move |n| async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        Ok(format!("{name}{n} "))
    })
}

#[tokio::test(start_paused = true)]
async fn sources_are_merged_as_they_come() {
    let app = App::new(|group: TaskGroup| async move {
        let sources = Sources::new()
            .source("news", every(2, "n"))
            .source("weather", every(5, "w"));
        group.merge(sources)
    });
    let (text, error) = drain(app.get().await.into_body()).await;
    assert_eq!(
        (text.as_str(), error.is_none()),
        ("n0 n1 w0 n2 w1 w2 ", true)
    );
    let none = drain(TaskGroupBody::merge(Sources::new())).await;
    assert_eq!((none.0.as_str(), none.1.is_none()), ("", true));
}

#[tokio::test(start_paused = true)]
async fn a_failing_source_fails_the_group_and_is_named() {
    let live = Live::default();
    let guard = live.guard();
    let endless = stream::unfold(guard, |guard| async move {
        pending::<()>().await;
        Some((Ok::<_, Infallible>("never"), guard))
    });
    let weather = stream::iter([Ok("w0 "), Err(std::io::Error::other("no sky"))]);
    let sources = Sources::new()
        .source("news", endless)
        .source("weather", weather);
    let (text, error) = drain(TaskGroupBody::merge(sources)).await;
    assert_eq!(text, "w0 ");
    let error = error.unwrap();
    let failed = error.downcast_ref::<SourceError>().unwrap();
    assert_eq!(
        (failed.name(), failed.to_string().as_str()),
        ("weather", "source weather failed")
    );
    assert!(failed.source().unwrap().is::<std::io::Error>());
    assert_eq!(live.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failing_optional_source_ends_alone_and_is_in_the_report() {
    for panics in [false, true] {
        let app = App::new(move |group: TaskGroup| async move {
            let weather = stream::iter(0..2).map(move |n| match n {
                0 => Ok("w0 "),
                _ if panics => panic!("storm"),
                _ => Err("no sky"),
            });
            let sources = Sources::new()
                .optional("weather", weather)
                .source("news", every(2, "n"));
            group.merge(sources)
        });
        let (text, error) = drain(app.get().await.into_body()).await;
        assert_eq!((text.as_str(), error.is_none()), ("w0 n0 n1 n2 ", true));
        let report = app.report().await;
        assert!(report.ending.succeeded());
        assert_eq!(report.outcome(), Outcome::Complete);
        let failed = report.errors[0].downcast_ref::<SourceError>().unwrap();
        let cause = failed.source().unwrap().to_string();
        assert_eq!(failed.name(), "weather");
        assert_eq!(failed.source().unwrap().is::<Failure>(), panics);
        assert_eq!(
            cause,
            if panics {
                "stream panicked: storm"
            } else {
                "no sky"
            }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_source_is_a_panic_that_names_it() {
    let app = App::new(|group: TaskGroup| async move {
        let bad = stream::iter(0..1).map(|_| -> Result<&str, Infallible> { panic!("storm") });
        group.merge(Sources::new().source("weather", bad))
    });
    let (_, error) = drain(app.get().await.into_body()).await;
    let error = error.unwrap();
    let failed = error.cause().downcast_ref::<SourceError>().unwrap();
    assert_eq!(failed.name(), "weather");
    let failure = failed.source().unwrap().downcast_ref().map(Failure::kind);
    match failure.unwrap() {
        FailureKind::Panicked { what, message } => {
            assert_eq!((what.as_str(), message.as_str()), ("stream", "storm"));
        }
        other => panic!("{other:?}"),
    }
    assert!(error.downcast_ref::<Failure>().is_some());
    assert_eq!(
        format!("{error:#}"),
        "response body failed: source weather failed: stream panicked: storm"
    );
    let report = app.report().await;
    assert_eq!(report.outcome(), Outcome::Panicked);
    assert_eq!(report.counts.tasks_panicked, 1);
    assert_eq!(report.counts.tasks_failed, 0);
    assert_eq!(report.errors.len(), 1);
    assert!(report.errors[0].is::<SourceError>());
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_destructor_panics_is_named_too() {
    struct Bursts;
    impl Drop for Bursts {
        fn drop(&mut self) {
            panic!("storm");
        }
    }
    let app = App::new(|group: TaskGroup| async move {
        let bad = stream::once(async { Ok::<_, Infallible>("w0 ") });
        let bad = bad.chain(stream::unfold(Bursts, |_kept| async { None }));
        group.merge(Sources::new().source("weather", bad))
    });
    let (text, error) = drain(app.get().await.into_body()).await;
    assert_eq!(text, "w0 ");
    assert!(error.unwrap().cause().is::<SourceError>());
    assert_eq!(app.report().await.outcome(), Outcome::Panicked);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_drops_the_sources() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let endless = stream::unfold(seen.guard(), |guard| async move {
            Some((Ok::<_, Infallible>(vec![b'x'; 5000]), guard))
        });
        group.merge(Sources::new().source("a", endless))
    });
    let mut body = app.get().await.into_body();
    http_body_util::BodyExt::frame(&mut body)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(live.count(), 1);
    drop(body);
    assert_eq!(app.report().await.outcome(), Outcome::Dropped);
    assert_eq!(live.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn spawn_is_refused_beyond_the_most_tasks_and_gives_the_future_back() {
    let app = App::new(|group: TaskGroup| async move {
        group.set_max_tasks(2);
        let tasks = group.clone();
        group.body(|tx| async move {
            let first = tx.clone();
            tasks.spawn(async move { Ok(first.send("a").await?) })?;
            tasks.spawn_blocking(|_| Ok(()))?;
            let third = tx.clone();
            let refused = tasks.spawn(async move { Ok(third.send("b").await?) });
            let refused = refused.unwrap_err();
            assert!(refused.is_full());
            assert_eq!(
                refused.to_string(),
                "task refused: as many run as `max_tasks` allows; `spawn_when_free` waits"
            );
            let blocking = tasks.spawn_blocking(|_| Err(boom("ran"))).unwrap_err();
            assert!(blocking.is_full());
            // The future is whole: it may be run in place.
            refused.into_inner().await
        })
    });
    let (text, error) = drain(app.get().await.into_body()).await;
    assert_eq!((text.len(), error.is_none()), (2, true));
}

#[tokio::test(start_paused = true)]
async fn spawn_when_free_waits_in_turn_and_never_runs_more() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        group.set_max_tasks(3);
        let tasks = group.clone();
        group.body(|tx| async move {
            for n in 0..20 {
                let (tx, seen) = (tx.clone(), seen.clone());
                let task = async move {
                    let _guard = seen.guard();
                    assert!(seen.count() <= 3);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(tx.send(format!("{n} ")).await?)
                };
                tasks.spawn_when_free(task).await?;
            }
            Ok(())
        })
    });
    let (text, error) = drain(app.get().await.into_body()).await;
    assert!(error.is_none());
    let expected: String = (0..20).map(|n| format!("{n} ")).collect();
    assert_eq!(text, expected);
    assert_eq!(app.report().await.counts.tasks_joined, 21);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_is_released_by_the_cancellation() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        group.set_max_tasks(1);
        let tasks = group.clone();
        let guard = seen.guard();
        group.body(|tx| async move {
            let other = tasks.clone();
            tasks.spawn_graceful(|_| async move {
                let waited = other.spawn_when_free(pending()).await;
                drop(guard);
                assert!(!waited.unwrap_err().is_full());
                Ok(())
            })?;
            tx.send("x").await?;
            pending().await
        })
    });
    let mut body = app.get().await.into_body();
    http_body_util::BodyExt::frame(&mut body)
        .await
        .unwrap()
        .unwrap();
    drop(body);
    until(|| live.count() == 0).await;
    assert_eq!(app.report().await.counts.tasks_panicked, 0);
}

/// Behind a failure of its own: both are told.
#[tokio::test(start_paused = true)]
async fn a_source_that_fails_and_panics_as_it_goes() {
    struct Bursts;
    impl Drop for Bursts {
        fn drop(&mut self) {
            panic!("storm");
        }
    }
    for optional in [false, true] {
        let app = App::new(move |group: TaskGroup| async move {
            let bad = stream::once(async { Err::<&str, _>(boom("no sky")) });
            let bad = bad.chain(stream::unfold(Bursts, |_kept| async { None }));
            let sources = Sources::new().source("news", every(2, "n"));
            group.merge(match optional {
                true => sources.optional("weather", bad),
                false => sources.source("weather", bad),
            })
        });
        let (_, error) = drain(app.get().await.into_body()).await;
        let report = app.report().await;
        let outcome = match optional {
            true => Outcome::Complete,
            false => Outcome::Panicked,
        };
        assert_eq!((error.is_none(), report.outcome()), (optional, outcome));
        assert_eq!(report.counts.tasks_panicked, u64::from(!optional));
        let told = |cause: &bodyguard::Cause| {
            let source: &SourceError = cause.downcast_ref().unwrap();
            assert_eq!(source.name(), "weather");
            source.source().unwrap().to_string()
        };
        let told: Vec<_> = report.errors.iter().map(told).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().any(|text| text == "no sky"), "{told:?}");
        assert!(told.iter().any(|text| text.contains("storm")), "{told:?}");
    }
}
