//! The pages in a real browser: headless Chromium, driven by chromedriver as a person would use it: typing, clicking, printing.
//!
//! With `RECEIPT_SCREENSHOTS=DIR` the screenshots of docs/ are left there.

use crate::child::die_with_parent;
use crate::client::Client;
use crate::stand::{OtherMachine, Stand, until};
use receipt_store::render::sample::sample;
use receipt_store::{Put, ReceiptPath, Writer, WriterOptions};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

/// A browser window. Dropping it ends the browser and its driver.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    /// The address of the front end.
    site: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start(site: SocketAddr) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromedriver");
        command.args(["--port=0"]).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        command.env("TMPDIR", profile.path()).env("HOME", profile.path());
        let driver = die_with_parent(&mut command).spawn();
        let mut driver = driver.expect("chromedriver (apt-get install chromium chromium-driver)");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            line.split_once("successfully on port ")
                .map(|(_, port)| port.trim_end_matches('.').parse().unwrap())
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port.expect("a port")));
        std::thread::spawn(move || lines.for_each(drop)); // a full pipe would stop it
        let data = format!("--user-data-dir={}", profile.path().join("profile").display());
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--lang=en-US",
            "--window-size=1040,1000",
            "--hide-scrollbars",
            &data,
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": args }, "goog:loggingPrefs": { "browser": "ALL" }
        } } });
        let site = format!("http://{site}");
        let mut browser = Self { driver, address, session: String::new(), site, _profile: profile };
        let session = browser.call("POST", "/session", &wanted);
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    /// A WebDriver command that may fail.
    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let text = if method == "GET" { String::new() } else { body.to_string() };
        let answer = Client::connect(self.address).send(
            method,
            &format!("{}{path}", self.session),
            &[("connection", "close")],
            text.as_bytes(),
        );
        let value = answer.json()["value"].take();
        if answer.status == 200 { Ok(value) } else { Err(value.to_string()) }
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    #[track_caller]
    fn open(&self, target: &str) {
        self.call("POST", "/url", &json!({ "url": format!("{}{target}", self.site) }));
    }

    #[track_caller]
    fn script(&self, text: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({ "script": text, "args": [] }))
    }

    fn try_find(&self, css: &str) -> Option<String> {
        let found =
            self.try_call("POST", "/element", &json!({ "using": "css selector", "value": css })).ok()?;
        let id = found.as_object()?.values().next()?.as_str()?.to_owned();
        Some(format!("/element/{id}"))
    }

    /// The element, once it is there.
    #[track_caller]
    fn find(&self, css: &str) -> String {
        until(css, || self.try_find(css))
    }

    #[track_caller]
    fn text(&self, css: &str) -> String {
        let element = self.find(css);
        self.call("GET", &format!("{element}/text"), &Value::Null).as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn click(&self, css: &str) {
        let element = self.find(css);
        self.call("POST", &format!("{element}/click"), &json!({}));
    }

    /// Types as a keyboard does; `\u{e007}` is Enter.
    #[track_caller]
    fn keys(&self, css: &str, text: &str) {
        let element = self.find(css);
        self.call("POST", &format!("{element}/value"), &json!({ "text": text }));
    }

    /// What a screen reader says of an element: its role and its name.
    #[track_caller]
    fn spoken(&self, css: &str) -> (String, String) {
        let element = self.find(css);
        let get = |what: &str| self.call("GET", &format!("{element}/{what}"), &Value::Null);
        let text = |value: Value| value.as_str().unwrap().to_owned();
        (text(get("computedrole")), text(get("computedlabel")))
    }

    /// Waits until the picture of the receipt is drawn.
    #[track_caller]
    fn wait_for_picture(&self) {
        self.find("figure img");
        until("the picture", || {
            let width = self.script(
                "const i = document.querySelector('figure img'); return i && i.complete ? i.naturalWidth : 0",
            );
            (width == 1240).then_some(())
        });
    }

    /// Keeps what the window shows, when somebody asked for it: the whole page.
    fn screenshot(&self, name: &str) {
        let height = self.script(
            "return document.body.getBoundingClientRect().height + window.outerHeight - window.innerHeight",
        );
        let height = height.as_f64().unwrap().ceil().max(400.0);
        self.call("POST", "/window/rect", &json!({ "width": 1040, "height": height }));
        let png = decode_base64(self.call("GET", "/screenshot", &Value::Null).as_str().unwrap());
        assert!(png.starts_with(b"\x89PNG"), "no screenshot");
        if let Some(dir) = std::env::var_os("RECEIPT_SCREENSHOTS") {
            std::fs::write(std::path::Path::new(&dir).join(format!("{name}.png")), png).unwrap();
        }
    }

    /// Everything on the page comes from the front end, and the browser had nothing to refuse.
    #[track_caller]
    fn nothing_foreign(&self) {
        let names = self.script("return performance.getEntriesByType('resource').map(e => e.name)");
        for name in names.as_array().unwrap() {
            assert!(name.as_str().unwrap().starts_with(&self.site), "{name}");
        }
        let log = self.call("POST", "/se/log", &json!({ "type": "browser" }));
        for entry in log.as_array().unwrap() {
            // The pages of missing and pending receipts are 404 and 409, which the browser notes.
            let text = entry["message"].as_str().unwrap();
            assert!(text.contains("status of 4"), "{text}");
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.try_call("DELETE", "", &json!({}));
        }
        // The driver leads a group of its own, with whatever of the browser is left.
        let group = rustix::process::Pid::from_child(&self.driver);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.driver.wait();
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|d| *d == byte)
    };
    let digits: Vec<usize> = text.bytes().filter_map(digit).collect();
    let mut out = Vec::new();
    for group in digits.chunks(4) {
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - group.len()));
        out.extend_from_slice(&u32::try_from(bits).unwrap().to_be_bytes()[1..group.len()]);
    }
    out
}

#[test]
fn a_person_finds_reads_saves_and_prints_receipts() {
    let stand = Stand::new();
    let issuer = stand.issuer(&["--font-dir", "/usr/share/fonts"]);
    for record in sample(5) {
        let json = serde_json::to_string(&record).unwrap();
        issuer.send("POST", "/issue", &[("content-type", "application/json")], json.as_bytes()).expect(201);
    }
    let front = stand.front(&issuer, &[]);
    let browser = Browser::start(front.address);
    search_by_number(&browser, &front);
    search_by_day(&browser);
    other_language(&browser);
    missing(&browser);
    drop(issuer);
    pending_until_it_is_there(&browser, &stand);
}

fn search_by_number(browser: &Browser, front: &crate::stand::Gateway) {
    browser.open("/");
    assert_eq!(browser.spoken("#id"), ("textbox".to_owned(), "Receipt number".to_owned()));
    assert_eq!(browser.spoken("form[action='/view'] button"), ("button".to_owned(), "Show".to_owned()));
    assert_eq!(browser.spoken("#date").1, "Day");
    browser.screenshot("page-search");
    browser.nothing_foreign();
    browser.keys("#id", "HT2026112300000003\u{e007}");
    browser.wait_for_picture();
    assert_eq!(browser.text("h1"), "HT2026112300000003");
    assert_eq!(browser.text(".badge"), "✓ Verified");
    assert_eq!(browser.spoken("figure img").1, "Image of receipt HT2026112300000003");
    browser.screenshot("page-receipt");
    browser.nothing_foreign();
    // What the link saves is what the page has verified.
    let link = browser.script("return document.querySelector('a[download]').getAttribute('href')");
    let saved = front.get(link.as_str().unwrap()).expect(200);
    let hash = browser.script("return document.querySelector('.hash').textContent");
    assert_eq!(hash, blake3::hash(&saved.body).to_hex().as_str());
    // The button prints; the print has one page, with the picture and without the frame of the site.
    assert_eq!(browser.spoken("#print"), ("button".to_owned(), "Print".to_owned()));
    browser.script("window.print = () => { window.printed = true }");
    browser.click("#print");
    assert_eq!(browser.script("return window.printed"), true);
    let pdf = decode_base64(browser.call("POST", "/print", &json!({ "background": true })).as_str().unwrap());
    let text = String::from_utf8_lossy(&pdf);
    assert!(text.starts_with("%PDF-"), "no PDF");
    assert_eq!(text.matches("/Type /Page\n").count(), 1, "pages of the print");
    assert!(text.contains("/Subtype /Image"), "no picture in the print");
    if let Some(dir) = std::env::var_os("RECEIPT_SCREENSHOTS") {
        std::fs::write(std::path::Path::new(&dir).join("print.pdf"), &pdf).unwrap();
    }
}

fn search_by_day(browser: &Browser) {
    browser.click(".brand");
    browser.keys("#date", "11232026");
    browser.click("form[action='/'] button");
    assert_eq!(browser.text("h2"), "Receipts of 2026-11-23");
    let rows = browser.script("return [...document.querySelectorAll('tbody a')].map(a => a.textContent)");
    assert_eq!(rows.as_array().unwrap().len(), 5);
    assert_eq!(rows[0], "HT2026112300000005", "newest first");
    browser.screenshot("page-day");
    browser.nothing_foreign();
    browser.click("tbody tr:nth-child(2) a");
    browser.wait_for_picture();
    assert_eq!(browser.text("h1"), "HT2026112300000004");
}

fn other_language(browser: &Browser) {
    browser.click(".languages a[hreflang='zh-CN']");
    browser.wait_for_picture();
    assert_eq!(browser.text(".badge"), "✓ 已验证");
    assert_eq!(browser.script("return document.documentElement.lang"), "zh-CN");
    browser.screenshot("page-receipt-zh");
    // It stays, through links and forms.
    browser.click(".brand");
    browser.keys("#id", "HT2026112300000001\u{e007}");
    browser.wait_for_picture();
    assert_eq!(browser.text(".badge"), "✓ 已验证");
    browser.click(".languages a[hreflang='en']");
    browser.wait_for_picture();
    assert_eq!(browser.text(".badge"), "✓ Verified");
}

fn missing(browser: &Browser) {
    browser.open("/");
    browser.keys("#id", "<b>nothing</b>\u{e007}");
    assert_eq!(browser.text("[role=alert] h1"), "No such receipt");
    assert!(browser.text(".detail").contains("<b>nothing</b>"));
    browser.screenshot("page-missing");
    browser.nothing_foreign();
}

/// The page of a receipt that is being issued becomes the receipt by itself.
fn pending_until_it_is_there(browser: &Browser, stand: &Stand) {
    let path = ReceiptPath::new("2026/11/23/NEW.png").unwrap();
    let picture =
        stand.reader().get(&ReceiptPath::new("2026/11/23/HT2026112300000001.png").unwrap()).unwrap();
    let machine = OtherMachine::new(&stand.disk());
    let mut writer = Writer::open(&machine, &WriterOptions::default()).unwrap();
    machine.writes.store(1, Ordering::Relaxed);
    writer.put(&Put::new(&path, picture.data())).unwrap_err();
    browser.open("/view/2026/11/23/NEW.png");
    assert_eq!(browser.text("[role=alert] h1"), "Just a moment");
    browser.screenshot("page-pending");
    let issuer = stand.issuer(&[]); // recovers it
    browser.wait_for_picture();
    assert_eq!(browser.text("h1"), "NEW");
    browser.nothing_foreign();
    assert!(issuer.stop().success());
}
