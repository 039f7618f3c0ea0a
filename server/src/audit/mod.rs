//! The audit trail: who reached what through whom, in lines that cannot be changed unseen.
//!
//! Reading order: [`facts`] (what is written down of a dial), [`trail`] (what the dialer holds: a
//! draft becomes one refusal, or a start and an end), [`record`] and [`text`] (a line), [`chain`]
//! (each line holds the hash of the one before), [`writer`] (the thread that writes, signs
//! checkpoints and knows what to do when it cannot), [`open`], [`store`], [`mod@file`] and [`tail`] (the file:
//! its lock, its rotation, what a crash left), [`verify`], [`findings`] and [`report`] (the proof), [`command`]
//! (`towline-server audit verify`). [`record`], [`chain`], [`tail`] and [`verify`] are pure.
//!
//! A dial pays for one message into a channel. What the writer does with it, and how long a disk
//! takes, no dial waits for; when the trail cannot be written, new dials are refused or go on
//! unseen and counted, as `--audit-failure` says.

pub mod chain;
pub mod command;
pub mod enrolment;
pub mod facts;
pub mod file;
pub mod findings;
pub mod metrics;
pub mod open;
pub mod record;
pub mod report;
pub mod requests;
pub mod signing;
pub mod store;
pub mod tail;
pub mod text;
pub mod trail;
pub mod verify;
pub mod writer;

pub use facts::Facts;
pub use trail::{Audit, Draft, OpenRecord};

#[cfg(test)]
mod verify_tests;
#[cfg(test)]
mod writer_tests;
