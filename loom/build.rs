//! Selects loom's primitives in the files that this package shares with the crate.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
