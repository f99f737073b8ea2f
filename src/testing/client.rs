//! A client inside the process that leaves early and waits for what that sets off.

use std::{error::Error, sync::Arc};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tower_service::Service;

use crate::{
    BodyError, BoxError, EndReport,
    scope::{closing, sources},
};

/// What a client got before it left, and how the response ended then.
#[derive(Debug)]
#[non_exhaustive]
pub struct Taken {
    /// The response's status.
    pub status: StatusCode,
    /// The response's headers.
    pub headers: HeaderMap,
    /// The data frames that were taken, in order.
    pub frames: Vec<Bytes>,
    /// The trailers, if they came within the frames asked for.
    pub trailers: Option<HeaderMap>,
    /// The body's error, if it failed within the frames asked for.
    pub error: Option<BoxError>,
    /// The body came to its end within the frames asked for.
    pub ended: bool,
    /// The end report, after the teardown: failures are in [`EndReport::errors`]. `None` if nothing
    /// was registered in the response's scope, or there was none.
    pub report: Option<Arc<EndReport>>,
}

/// Calls a service, takes up to `frames` frames of the response, disconnects, and waits for the teardown.
///
/// It works through boxed bodies and foreign layers. With more frames than the body has, the
/// response is read to its end.
///
/// ```
/// use axum::{Router, body::Body, routing::get};
/// use bodyguard::{Cleanup, CleanupLayer, Outcome, testing::{Script, take_frames}};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let handler = get(|cleanup: Cleanup| async move {
///     cleanup.defer(|_| async { Ok(()) });
///     Body::new(Script::new().data("a").data("b").data("c"))
/// });
/// let app: Router = Router::new().route("/", handler).layer(CleanupLayer::new());
/// let taken = take_frames(app, http::Request::new(Body::empty()), 2).await.unwrap();
/// let report = taken.report.unwrap();
/// assert_eq!(report.outcome(), Outcome::Dropped);
/// assert_eq!(report.counts.closers_run, 1);
/// # });
/// ```
///
/// # Errors
/// The service's own, from getting ready or from the call.
///
/// **On drop**: the client leaves where it stands; nobody waits for the teardown.
pub async fn take_frames<S, R, B>(
    mut service: S,
    request: Request<R>,
    frames: usize,
) -> Result<Taken, S::Error>
where
    S: Service<Request<R>, Response = Response<B>>,
    B: Body,
    B::Error: Into<BoxError>,
{
    std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
    let response = service.call(request).await?;
    let mut taken = Taken {
        status: response.status(),
        headers: response.headers().clone(),
        frames: Vec::new(),
        trailers: None,
        error: None,
        ended: false,
        report: None,
    };
    // Boxed, since the body may not be `Unpin`.
    let mut response = closing(response.map(Box::pin));
    for _ in 0..frames {
        if response.is_end_stream() {
            taken.ended = true;
            break;
        }
        match response.frame().await {
            None => {
                taken.ended = true;
                break;
            }
            Some(Err(error)) => {
                taken.error = Some(error.into());
                break;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(mut data) => taken.frames.push(data.copy_to_bytes(data.remaining())),
                Err(frame) => taken.trailers = frame.into_trailers().ok(),
            },
        }
    }
    taken.report = match response.close().await {
        Ok(report) => report,
        Err(error) => Some(error.into_report()),
    };
    Ok(taken)
}

impl Taken {
    /// All data frames, one behind the other.
    pub fn data(&self) -> Bytes {
        self.frames.concat().into()
    }

    /// The body's error as a concrete type, wherever it stands among the sources, and all causes of a
    /// [`BodyError`].
    pub fn error_as<E: Error + 'static>(&self) -> Option<&E> {
        sources(&**self.error.as_ref()?).find_map(|error| {
            let behind = || error.downcast_ref::<BodyError>()?.downcast_ref();
            error.downcast_ref().or_else(behind)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt, io};

    use super::*;

    #[test]
    fn an_error_is_found_behind_any_cause() {
        let further = BoxError::from(io::Error::other(fmt::Error));
        let error = BodyError::new("first").and(&[further.into()]);
        let taken = Taken {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            frames: Vec::new(),
            trailers: None,
            error: Some(io::Error::other(error).into()),
            ended: false,
            report: None,
        };
        assert!(taken.error_as::<fmt::Error>().is_some());
        assert!(taken.error_as::<BodyError>().is_some());
        assert!(taken.error_as::<std::num::ParseIntError>().is_none());
    }
}
