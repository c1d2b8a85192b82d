//! Errors as JavaScript sees them: an `Error` whose message is one clear sentence.

use std::fmt::Display;

/// An error that says `what`.
pub fn sentence(what: impl Display) -> napi::Error {
    napi::Error::from_reason(what.to_string())
}
