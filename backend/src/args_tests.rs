use super::*;
use crate::throttle::Rate;

fn config(arguments: &str) -> Result<Config, String> {
    let words = std::iter::once("receiptdisk-backend").chain(arguments.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    match cli.into_action().map_err(|error| error.to_string())? {
        Action::Serve(config) => Ok(*config),
        Action::PrintCapabilities | Action::Ctl { .. } => Err("not serve".into()),
    }
}

fn error(arguments: &str) -> String {
    let error = config(arguments).unwrap_err();
    assert!(!error.is_empty());
    error
}

const ISSUER: &str = "serve --image i --guest name=issuer,socket=/a";

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = config(ISSUER).unwrap();
    assert_eq!((config.queues, config.queue_size, config.engine), (64, 1024, None));
    assert_eq!((config.image.cache, config.unmap, config.image.writable), (CacheMode::Direct, true, true));
    let guest = &config.guests[0];
    assert_eq!((guest.role, guest.reads), (Role::ReadWrite, ReadMode::Completed));
    assert_eq!(guest.access, SocketAccess::default());
}

#[test]
fn every_key_of_a_guest_is_understood() {
    let text = "serve --image i --guest name=f,connect=/q,access=standby,reads=durable,mode=0660,group=0";
    let guest = &config(text).unwrap().guests[0];
    assert_eq!(guest.endpoint, EndpointConfig::Connect("/q".into()));
    assert_eq!((guest.role, guest.reads), (Role::Standby, ReadMode::Durable));
    assert_eq!(guest.access, SocketAccess { mode: Some(0o660), group_id: Some(0) });
}

#[test]
fn limits_and_processors_are_understood() {
    let text = format!("{ISSUER},iops=2000:500,bps=64M --cpus 2,4-6 --poll-us 0");
    let config = config(&text).unwrap();
    let limits = config.guests[0].limits;
    assert_eq!(limits.requests, Some(Rate { per_second: 2000, burst: 500 }));
    assert_eq!(limits.bytes, Some(Rate { per_second: 64 << 20, burst: (64u64 << 20).div_ceil(10) }));
    assert_eq!((config.cpus, config.poll), (vec![2, 4, 5, 6], Duration::ZERO));
    for list in ["", "a", "1-", "3-2", "1,,2", "1024", "-1"] {
        assert!(error(&format!("{ISSUER} --cpus={list}")).contains("--cpus"), "{list}");
    }
}

#[test]
fn bad_guests_are_named() {
    let cases = [
        ("name=a", "socket= or connect= is missing"),
        ("socket=/a", "name= is missing"),
        ("name=,socket=/a", "a name is"),
        ("name=a/b,socket=/a", "a name is"),
        ("name=a,socket=/a,access=rx", "access is"),
        ("name=a,socket=/a,reads=fast", "reads is"),
        ("name=a,socket=/a,mode=9", "mode is octal"),
        ("name=a,socket=/a,mode=7777", "mode is octal"),
        ("name=a,socket=/a,group=nobody-here", "no group"),
        ("name=a,socket=/a,iops=0", "iops is RATE"),
        ("name=a,socket=/a,bps=1M:", "bps is RATE"),
        ("name=a,socket=/a,bps=fast", "bps is RATE"),
        ("name=a,socket=/a,color=red", "unknown key 'color'"),
        ("name=a,socket=/a,name=b", "given twice"),
        ("name=a,socket=/a,connect=/b", "exclude each other"),
        ("name=a,socket=", "1 to 107 bytes"),
        ("name", "not KEY=VALUE"),
    ];
    for (guest, expected) in cases {
        let message = error(&format!("serve --image i --guest {guest}"));
        assert!(message.contains(expected), "{guest}: {message}");
    }
    let long = format!("serve --image i --guest name=a,socket=/{}", "x".repeat(107));
    assert!(error(&long).contains("this one 108"));
}

#[test]
fn guests_do_not_collide() {
    assert!(
        error(&format!("{ISSUER} --guest name=issuer,socket=/b,access=ro")).contains("two guests are named")
    );
    assert!(error(&format!("{ISSUER} --guest name=b,socket=/a,access=ro")).contains("use the socket"));
    assert!(error(&format!("{ISSUER} --guest name=b,socket=/b")).contains("both have access=rw"));
    assert!(config(&format!("{ISSUER} --guest name=b,socket=/b --multi-writer")).is_ok());
    assert!(config(&format!("{ISSUER} --guest name=b,socket=/b,access=standby")).is_ok());
}

#[test]
fn only_readers_never_open_for_writing() {
    let config = config("serve --image i --guest name=a,socket=/a,access=ro").unwrap();
    assert!(!config.image.writable);
}

#[test]
fn sizes_are_powers_of_1024() {
    for (text, bytes) in [("512", 512), ("4K", 4096), ("256M", 256 << 20), ("8G", 8 << 30), ("1T", 1 << 40)] {
        assert_eq!(parse_size("--create", text).unwrap(), bytes);
    }
    for text in ["", "M", "0", "0M", "1.5G", "-1", "4KB", "16777216T", "99999999999999999999"] {
        assert!(parse_size("--create", text).unwrap_err().to_string().contains("--create"), "{text}");
    }
}

#[test]
fn queue_numbers_are_checked() {
    for arguments in ["--queues 0", "--queues 65", "--queue-size 0", "--queue-size 3", "--queue-size 2048"] {
        assert!(error(&format!("{ISSUER} {arguments}")).contains("possible"), "{arguments}");
    }
}

#[test]
fn the_convention_of_qemu_makes_one_guest() {
    let config = config("--socket-path=/s --blk-file=f --read-only").unwrap();
    assert_eq!(config.guests[0].endpoint, EndpointConfig::Listen("/s".into()));
    assert_eq!((config.guests[0].role, config.image.writable), (Role::ReadOnly, false));
    assert!(error("--socket-path=/s").contains("nothing to do"));
    assert!(error("--blk-file=f").contains("needs --socket-path or --fd"));
    assert!(error("").contains("nothing to do"));
}
