//! The gRPC interfaces that beelet speaks: today the Container Runtime Interface and gRPC's health protocol, later CSI, device plugins
//! and others.
//!
//! Problem: a kubelet must be understood by every CRI v1 runtime, but most of the interface is of no use to beelet, and a
//! generator that needs `protoc` would need it on every machine that builds beelet. Approach: `proto/cri.proto` has the part
//! that beelet uses, written by hand with the names and numbers of CRI v1; `build.rs` compiles it in Rust.
//!
//! Property: what is not in the subset is skipped when read and absent when written, so it takes the default that CRI defines.

/// CRI v1 (`runtime.v1`): messages, clients and, for tests, servers. Documented in `proto/cri.proto`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::derive_partial_eq_without_eq,
    clippy::doc_markdown,
    clippy::missing_errors_doc,
    reason = "generated code"
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// gRPC's health protocol (`grpc.health.v1`). Documented in `proto/health.proto`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::doc_markdown,
    clippy::missing_errors_doc,
    reason = "generated code"
)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
