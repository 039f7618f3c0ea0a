//! Kubelets' signing requests at the server: which are approved, denied, left alone and signed,
//! against an API that behaves like the real one.

mod approver;
mod issuer;
mod world;
