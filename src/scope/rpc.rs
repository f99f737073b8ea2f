//! How a remote procedure call came out: gRPC says it beside an HTTP status of 200.

use http::{HeaderMap, HeaderName};

use super::machine::Scope;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Whether these headers, or trailers, say that the call failed. Without a status they say nothing.
fn has_failed(headers: &HeaderMap) -> bool {
    let status = headers.get(GRPC_STATUS);
    status.is_some_and(|status| status.as_bytes() != b"0")
}

impl Scope {
    /// Reads the status of a call, in the head of an answer without messages or in the trailers.
    pub(super) fn note_rpc_status(&self, headers: &HeaderMap) {
        if has_failed(headers) {
            self.lock().rpc_failed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_other_than_ok_is_a_failure() {
        for (name, value, failed) in [
            ("grpc-status", "0", false),
            ("grpc-status", "5", true),
            ("Grpc-Status", "16", true),
            // What cannot be read is no success (RPC status "unknown").
            ("grpc-status", "", true),
            ("grpc-message", "not found", false),
            ("content-type", "application/grpc", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
            assert_eq!(has_failed(&headers), failed, "{name}: {value:?}");
        }
        assert!(!has_failed(&HeaderMap::new()));
    }
}
