//! The functions that the fuzz targets drive.

#[path = "../../transport/tests/parsers/bodies.rs"]
pub mod bodies;
