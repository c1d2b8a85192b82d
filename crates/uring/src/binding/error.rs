//! Errors as JavaScript sees them: an `Error` whose message is one clear sentence.

use crate::RuntimeError;
use napi::Status;
use std::fmt::Display;

/// An error that says `what`.
pub fn sentence(what: impl Display) -> napi::Error {
    napi::Error::from_reason(what.to_string())
}

/// An error about something that was given wrong: its code is `InvalidArg`.
pub fn refusal(what: impl Display) -> napi::Error {
    napi::Error::new(Status::InvalidArg, what.to_string())
}

/// Why a cache was not opened: a [`refusal`] where trying again is in vain.
pub fn not_opened(error: RuntimeError) -> napi::Error {
    if error.is_refusal() { refusal(error) } else { sentence(error) }
}
