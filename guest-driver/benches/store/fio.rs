//! The physical shape: the same transfers by `fio`.

use std::path::Path;
use std::process::Command;

/// Bytes per second, p50 and p99 in microseconds of the same transfers by `fio`.
pub fn fio(file: &Path, rw: &str, block_bytes: usize, size_bytes: usize) -> (f64, f64, f64) {
    let mut command = Command::new("fio");
    command.args(["--name=same", "--ioengine=psync", "--direct=1", "--output-format=json"]);
    command.arg(format!("--filename={}", file.display())).arg(format!("--rw={rw}"));
    command.arg(format!("--bs={block_bytes}")).arg("--overwrite=1").arg("--allow_file_create=0");
    if rw == "write" {
        command.arg(format!("--size={size_bytes}")).arg("--fdatasync=1");
    } else {
        command.args(["--size=512m", "--number_ios=1000"]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let part = &json["jobs"][0][if rw == "write" { "write" } else { "read" }];
    let percentile = |name: &str| part["clat_ns"]["percentile"][name].as_f64().unwrap_or_default() / 1e3;
    let seconds = json["jobs"][0]["job_runtime"].as_f64().unwrap() / 1e3;
    (part["io_bytes"].as_f64().unwrap() / seconds, percentile("50.000000"), percentile("99.000000"))
}
