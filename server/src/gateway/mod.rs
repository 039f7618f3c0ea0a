//! The kubelet gateway: ends kube-apiserver's TLS here, verifies the kubelet on every connection,
//! and reads the heads of requests in between.

pub mod event;
