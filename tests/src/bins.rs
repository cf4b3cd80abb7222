//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The host daemon: `$RECEIPTDISK_BACKEND`, or the one built beside the tests.
pub fn backend_binary() -> PathBuf {
    locate(
        "RECEIPTDISK_BACKEND",
        &["{profile}/receiptdisk-backend", "release/receiptdisk-backend", "debug/receiptdisk-backend"],
        "cargo build -p receiptdisk-backend",
    )
}

/// The guest helper, in any build that runs on this host.
pub fn receipt_binary() -> PathBuf {
    locate(
        "RECEIPT",
        &["{profile}/receipt", "x86_64-unknown-linux-gnu/release/receipt", "release/receipt"],
        "cargo build -p receipt --bin receipt",
    )
}

/// The program behind `receipt mount`, in any build that runs on this host.
pub fn receipt_mount_binary() -> PathBuf {
    locate(
        "RECEIPT_MOUNT",
        &["{profile}/receipt-mount", "x86_64-unknown-linux-gnu/release/receipt-mount"],
        "cargo build -p receipt --features mount --bin receipt-mount",
    )
}

/// Both gateways, in any build that runs on this host.
pub fn gateway_binary() -> PathBuf {
    locate(
        "RECEIPT_GATEWAY",
        &["{profile}/receipt-gateway", "x86_64-unknown-linux-gnu/release/receipt-gateway"],
        "cargo build -p receipt --features gateway --bin receipt-gateway",
    )
}

/// The guest helper as a static binary, fit for an initramfs without libraries.
pub fn static_receipt_binary() -> PathBuf {
    static_binary(
        "receipt",
        "RECEIPT",
        "RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu \
         -p receipt --bin receipt",
    )
}

/// Both gateways as a static binary, fit for an initramfs without libraries.
pub fn static_gateway_binary() -> PathBuf {
    static_binary(
        "receipt-gateway",
        "RECEIPT_GATEWAY",
        "RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu \
         -p receipt --features gateway --bin receipt-gateway",
    )
}

/// `receipt mount` as a static binary.
pub fn static_mount_binary() -> PathBuf {
    static_binary(
        "receipt-mount",
        "RECEIPT_MOUNT_STATIC",
        "RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu \
         -p receipt --features mount --bin receipt-mount",
    )
}

/// A static binary by its name; `build` is said where it is missing.
pub fn static_binary(name: &str, variable: &str, build: &str) -> PathBuf {
    locate(variable, &[&format!("x86_64-unknown-linux-gnu/release/{name}")], build)
}

/// `tests/guest/exercise.rs` as a static binary, made once for all tests of a program.
pub fn exercise_binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| guest_binary("exercise")).clone()
}

/// `tests/guest/kexec.rs` as a static binary.
pub fn kexec_binary() -> PathBuf {
    guest_binary("kexec")
}

/// `tests/guest/pauses.rs` as a static binary.
pub fn pauses_binary() -> PathBuf {
    guest_binary("pauses")
}

/// A program of `tests/guest`; the compiler alone makes it.
fn guest_binary(name: &str) -> PathBuf {
    let exe = env::current_exe().unwrap();
    let made = exe.with_file_name(format!("{name}-{}", std::process::id()));
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(compiler);
    command.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "strip=symbols",
        "-o",
    ]);
    command.arg(&made).arg(repository().join("tests/guest").join(format!("{name}.rs")));
    assert!(command.status().unwrap().success(), "{name}.rs does not compile");
    // At one place, whichever program makes it.
    let place = exe.with_file_name(name);
    std::fs::rename(&made, &place).unwrap();
    place
}

fn locate(variable: &str, places: &[&str], build: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
        return path;
    }
    // target/PROFILE/deps/TEST
    let exe = env::current_exe().unwrap();
    let profile = exe.ancestors().nth(2).unwrap();
    let target = profile.parent().unwrap();
    let profile = profile.file_name().unwrap().to_str().unwrap();
    let candidates = places.iter().map(|place| target.join(place.replace("{profile}", profile)));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("not built: {}; run: {build} (or set {variable})", places[0]))
}
