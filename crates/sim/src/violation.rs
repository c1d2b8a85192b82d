//! What a world ends with when something that must hold does not.

use std::fmt;

/// What was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes that nobody wrote, or that belong elsewhere (promises 1 and 5).
    Garbage,
    /// Old data after new data was served or answered (promise 2).
    Stale,
    /// A part of a write without the rest of it (promise 3).
    Torn,
    /// Data that a client was told is durable is gone (promise 1).
    Lost,
    /// A later write survived a crash without an earlier one: the log is no prefix.
    LogOrder,
    /// The origin's content is no disk that could have existed (promise 4).
    OriginIllegal,
    /// The origin holds what a crash took from the clients (rule 17).
    OriginAhead,
    /// A drain, a clean stop or a writethrough answer without the data on the origin.
    OriginBehind,
    /// An error that nothing in the world explains.
    UnexpectedError,
    /// Requests that wait for nothing (promise 8).
    Stuck,
    /// The cache could not be opened although nothing damaged it.
    OpenRefused,
    /// The engine broke the contract with its caller.
    Contract,
    /// Client and server do not understand each other.
    Protocol,
    /// Nothing is broken: damage explains what is gone, and the world ends there.
    Explained,
    /// An assertion of the engine.
    Panic,
}

/// Something that must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What was broken.
    pub kind: Kind,
    /// Where and how, for a reader of the trace.
    pub detail: String,
}

impl Violation {
    /// A violation with its details.
    #[must_use]
    pub fn new(kind: Kind, detail: String) -> Self {
        Self { kind, detail }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.kind, self.detail)
    }
}

impl std::error::Error for Violation {}
