//! Tells `fuzz/src` whose runtime it is built for: `cfg(libafl)`.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(libafl)");
    println!("cargo::rustc-cfg=libafl");
    println!("cargo::rerun-if-changed=build.rs");
}
