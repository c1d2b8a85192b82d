//! The simulator: the production engine, unchanged, in a world on a seed.
//!
//! A world has a simulated cache device, simulated origins, clients and time, and things that
//! fail. Everything in it is drawn from one seed: the same seed gives the same digest. A checker
//! sees what clients see and what origins are told to write, and judges both by the promises of
//! the design; `docs/reliability.md` says which, and what is not simulated.
//!
//! | module | duty |
//! |---|---|
//! | [`scenario`] | what kind of world a seed stands for |
//! | [`world`] | lives of the engine, crashes, restarts |
//! | [`stop`] | how an operator ends a life |
//! | `life`, `io`, `request` | the loop around the engine: time, I/Os, requests |
//! | [`device`], [`origin`] | what shows, and what a power cut leaves |
//! | [`faults`] | what can go wrong, and how often it did |
//! | `excuse` | which errors a failure explains |
//! | [`damage`] | quiet faults of the device, and what they explain |
//! | `copies` | the same of superblocks and export table, whose other copy must do |
//! | `former` | the cache that the device held before |
//! | [`client`], [`content`] | what is asked for, and data that names itself |
//! | `codec` | the protocol that it is asked and answered in |
//! | [`checker`] | the promises |
//! | [`shared`] | what makes a clone of a world cheap |
//! | [`run`], [`threads`] | one world, or many at the same time |
//! | [`exhaustive`] | every short sequence of operations, with every crash |
//! | [`bits`] | every bit of a cache flipped, every structure zeroed, swapped and aged |
//! | [`failures`] | each I/O of a scenario failing in turn |
//! | [`hang`] | one origin that neither answers nor fails, and exports beside it |

pub mod bits;
pub mod checker;
pub mod client;
mod codec;
pub mod content;
mod copies;
pub mod core;
pub mod damage;
pub mod device;
mod excuse;
pub mod exhaustive;
pub mod failures;
pub mod faults;
mod former;
pub mod hang;
mod io;
mod life;
mod memory;
pub mod origin;
mod probe;
mod production;
pub mod random;
mod request;
pub mod run;
pub mod scenario;
pub mod shared;
pub mod stop;
pub mod threads;
pub mod trace;
pub mod violation;
pub mod world;
