//! Strips the release binary: Cargo does not apply the profile's `strip` to a package that has an `opt-level` of its own. What finds the unwinding
//! table goes, too: a panic aborts, and a trace through a stripped program tells nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo:rustc-link-arg-bins=-Wl,--strip-all,--no-eh-frame-hdr");
    }
}
