//! What the targets drive.

#[path = "../../transport/tests/parsers/bodies.rs"]
pub mod bodies;
