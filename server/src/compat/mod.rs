//! The compatibility profile, `--compatibility=konnectivity`: another program's flags and
//! defaults, what they mean here, and what is not verified while it is on.
//!
//! [`args`] has the flags, [`profile`] checks them as a whole, [`running`] is what becomes of them, [`lease`] keeps the Lease by which
//! agents count servers, [`doctor`] lists the steps from here to full verification.

pub mod args;
pub mod doctor;
pub mod lease;
pub mod profile;
pub mod running;

pub use args::KonnectivityArgs;
pub use profile::{Profile, ProfileError};
