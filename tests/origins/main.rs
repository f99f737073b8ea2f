//! The behaviours that the crate was asked for, one test each; a module for each ticket of origin.

#[path = "../support/mod.rs"]
mod support;
mod ticket_36863;
mod ticket_36916;
mod ticket_37066;
