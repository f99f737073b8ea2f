//! The table on the terminal.

use std::{fmt::Write, time::Duration};

use crate::{
    rows::{Does, Leaves, Row, SETUPS, Sends},
    run::{Done, Saw},
    stage::How,
};

const HEADS: [&str; SETUPS.len()] = ["hyper", "axum", "layer", "serve", "axum+w"];

/// Prints all rows; gives how many cells are not as expected.
pub(crate) fn table(done: &[Done], at_most: Duration) -> usize {
    let mut missed = Vec::new();
    let mut group = String::new();
    for done in done {
        let next = group_of(&done.row);
        if next != group {
            println!("\n{next}");
            print!("  {:<13} {:<14} {:<14}", "sent", "server", "client");
            for head in HEADS {
                print!(" {head:>9}");
            }
            println!("   to be seen by");
            group = next;
        }
        println!("{}", line(done, at_most, &mut missed));
    }
    for text in &missed {
        println!("NOT AS EXPECTED: {text}");
    }
    missed.len()
}

fn line(done: &Done, at_most: Duration, missed: &mut Vec<String>) -> String {
    let row = &done.row;
    let (sends, does, leaves) = (sends(row.sends), does(row), leaves(row));
    let mut line = format!("  {sends:<13} {does:<14} {leaves:<14}");
    for (column, cell) in done.cells.iter().enumerate() {
        let mut text = match cell {
            None => String::new(),
            Some(Ok(Saw::Seen { how, after })) => {
                let read = if *how == How::ReadFailed { "read " } else { "" };
                format!("{read}{:.1}", after.as_secs_f64() * 1e3)
            }
            Some(Ok(Saw::NotSeen)) => "-".to_owned(),
            Some(Err(_)) => "failed".to_owned(),
        };
        if !done.is_met(column, at_most) {
            let _ = write!(text, "!");
            missed.push(format!(
                "{}, {sends}, {does}, {leaves}, {}: {cell:?}",
                group_of(row),
                HEADS[column]
            ));
        }
        let _ = write!(line, " {text:>9}");
    }
    let by = match (row.bare, row.layer, row.watched) {
        (true, true, true) => "all",
        (true, false, true) => "all but the layer alone",
        (false, false, true) => "the watched listener",
        (false, false, false) => "nobody",
        _ => "some",
    };
    let _ = write!(line, "   {by}");
    if !row.why.is_empty() {
        let _ = write!(line, ": {}", row.why);
    }
    line
}

fn group_of(row: &Row) -> String {
    let http = if row.http2 { "HTTP/2" } else { "HTTP/1.1" };
    let tls = if row.tls { " over TLS" } else { "" };
    let half_close = if row.half_close {
        ", half_close(true)"
    } else {
        ""
    };
    let drain = if row.drain { ", drain_request" } else { "" };
    format!("{http}{tls}{half_close}{drain}")
}

fn sends(sends: Sends) -> &'static str {
    match sends {
        Sends::Get => "GET",
        Sends::PipelinedGet => "GET, GET",
        Sends::StrayCrlf => "GET, CRLF",
        Sends::SmallPost => "100 B",
        Sends::Post => "40 KB",
        Sends::HalfPost => "20 of 40 KB",
        Sends::HalfSmallPost => "50 of 100 B",
        Sends::LargePost => "large upload",
    }
}

fn does(row: &Row) -> &'static str {
    match row.does {
        Does::Pends => "pending",
        Does::Idles => "body idle",
        Does::DropsUpload => "it is dropped",
        Does::HoldsUpload => "it is held",
        Does::ReadsSomeUpload => "it is begun",
        Does::ReadsUpload => "it is read",
        Does::Floods => "endless body",
        Does::AnswersLater => "answers later",
        Does::FlowsLater => "flows later",
    }
}

fn leaves(row: &Row) -> &'static str {
    match row.leaves {
        Leaves::Fin => "FIN",
        Leaves::Rst => "RST",
        Leaves::ShutdownWrite => "shutdown(WR)",
        Leaves::CloseNotify => "close_notify",
        Leaves::RstStream => "RST_STREAM",
        Leaves::GoAway => "GOAWAY",
        Leaves::Stays => "reads nothing",
        Leaves::HalfCloses => "WR, reads on",
        Leaves::FinThenWrite => "FIN, a write",
    }
}
