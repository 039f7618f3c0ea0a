//! Who is linked: one [`Node`] for each agent's name, and the [`Agents`] table of all of them.

mod node;
mod replacements;
mod table;

pub use node::{AgentLink, Ended, Node, Probe};
pub use table::{Admission, Agents, NotAdmitted};
