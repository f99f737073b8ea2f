//! A relay for a language model: tokens stream from an upstream server to the client.
//!
//! `cargo run --example token_relay`, then what it prints. `BIND` sets another address than
//! 127.0.0.1:3001, `DATABASE_URL=sqlite:usage.sqlite` a database that stays. Ctrl-C drains and prints
//! the report.
//!
//! A client that leaves takes its upstream request with it, or has it finished (`on_leave=finish`);
//! the tokens used are recorded exactly once, in every case.

use std::env;

use bodyguard::{BoxError, Supervisor, net};

mod meter;
mod relay;
mod upstream;
mod usage;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let upstream = upstream::Upstream::start().await?;
    let database = env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite::memory:".to_owned());
    let ledger = usage::Ledger::open(&database).await?;
    let supervisor = Supervisor::new();
    let app = relay::app(upstream.addr(), ledger.clone(), &supervisor);

    let bind = env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3001".to_owned());
    let listener = net::WatchedListener::bind(&bind)
        .await
        .map_err(|error| format!("cannot listen on {bind} (BIND sets another address): {error}"))?;
    print_help(&format!("http://{}", listener.local_addr()?));
    let report = net::serve(listener, app)
        .supervisor(&supervisor)
        .shutdown(async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending().await // It cannot be listened for: serve on.
            }
        })
        .await?;
    println!("drained: {report}");
    println!(
        "upstream: {} tokens sent, {} requests taken away, {} live",
        upstream.sent(),
        upstream.abandoned(),
        upstream.live()
    );
    println!("recorded: {} requests", ledger.rows().await?.len());
    Ok(())
}

fn print_help(url: &str) {
    println!(
        "token_relay: {url}

  curl -N -d 'to be or not to be' '{url}/v1/generate'
      Press Ctrl-C in curl half way: the upstream request is cancelled, the tokens so far are recorded.
  curl -N -d 'to be or not to be' '{url}/v1/generate?on_leave=finish'
      Press Ctrl-C in curl half way: it is finished all the same, and recorded whole.
  curl -N -d 'to be or not to be' '{url}/v1/generate?fault=close'
      The upstream goes wrong half way; also: busy, mute, hang, cut, fail, panic. curl sees a broken transfer.
  curl {url}/usage
      What was recorded: one row for each request.
"
    );
}
