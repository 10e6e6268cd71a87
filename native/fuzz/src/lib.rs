//! The functions that the fuzz targets drive.

#[path = "../../transport/tests/parsers/bodies.rs"]
pub mod bodies;
#[path = "../../memif/tests/hostile/bodies.rs"]
pub mod memif_bodies;
#[path = "../../neighbours/tests/hostile/bodies.rs"]
pub mod neighbours_bodies;
