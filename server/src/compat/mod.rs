//! The compatibility profile, `--compatibility=konnectivity`: another program's flags and
//! defaults, what they mean here, and what is not verified while it is on.
//!
//! [`args`] has the flags, [`profile`] checks them as a whole (`words` what some of them may say, `patience` how long a dial may take), [`running`] is what becomes of them, [`lease`] keeps the Lease by which
//! agents count servers, [`doctor`] lists the steps from here to full verification.

pub mod args;
pub mod doctor;
pub mod lease;
mod patience;
pub mod profile;
pub mod running;
mod words;

pub use args::KonnectivityArgs;
pub use profile::{Profile, ProfileError};
