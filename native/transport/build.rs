//! Sets `lanes` if the compiler has the intrinsics for the lanes: x86-64, from Rust 1.89 on.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(lanes)");
    let machine = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if machine == "x86_64" && rustversion::cfg!(since(1.89)) {
        println!("cargo:rustc-cfg=lanes");
    }
}
