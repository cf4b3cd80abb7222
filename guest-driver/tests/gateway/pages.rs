//! The pages for people, by their bytes; browser.rs looks at them with a browser.

use crate::image;
use crate::stand::Stand;

const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");

#[test]
fn a_receipt_is_shown_with_what_proves_it() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    let body = image(5000, 1);
    let stored = issuer.put("/receipts/2026/11/23/HT42.png?id=HT42", &body).expect(201).json();
    for target in ["/view?id=HT42", "/view/2026/11/23/HT42.png", "/view?id=%20HT42%20"] {
        let page = front.send("GET", target, &[HTML], b"").expect(200);
        let text = page.text();
        let hash = blake3::hash(&body).to_hex().to_string();
        assert!(text.replace("<wbr>", "").contains(&hash), "{text}");
        let source = format!("/receipts/{}?hash={hash}", stored["locator"].as_str().unwrap());
        assert!(text.contains(&format!("<img src=\"{source}\"")), "{text}");
        assert!(front.get(&source).expect(200).body == body);
        assert!(text.contains("Verified") && text.contains("<h1>HT42</h1>"), "{text}");
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(page.header("cache-control"), Some("private, no-store"));
        assert!(!text.contains("<script>") && !text.contains("style=\"") && !text.contains("http"), "{text}");
    }
    for (target, content_type) in [
        ("/style.css", "text/css; charset=utf-8"),
        ("/print.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ] {
        assert_eq!(front.get(target).expect(200).header("content-type"), Some(content_type));
    }
}

#[test]
fn pages_speak_the_language_of_the_reader() {
    let stand = Stand::new();
    let front = stand.start("front", &[]);
    let page = |target: &str, language: &str| {
        front.send("GET", target, &[HTML, ("accept-language", language)], b"").expect(200).text()
    };
    assert!(page("/", "en-GB").contains("<html lang=\"en\">"));
    let chinese = page("/", "zh-CN,zh;q=0.9,en;q=0.5");
    assert!(chinese.contains("<html lang=\"zh-CN\">") && chinese.contains("查询回单"));
    // The switch wins over the browser, and stays.
    let switched = page("/?lang=en", "zh-CN");
    assert!(switched.contains("<html lang=\"en\">"));
    assert!(switched.contains("name=\"lang\" value=\"en\""), "{switched}");
    assert!(page("/?date=2026-11-23&lang=en", "zh").contains("href=\"/?date=2026-11-23&amp;lang=zh\""));
}

#[test]
fn a_day_is_listed_in_pages() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    let mut client = issuer.client();
    for number in 0..120 {
        client.send("PUT", &format!("/receipts/2026/11/23/HT{number:03}.png"), &[], b"x").expect(201);
    }
    let first = front.send("GET", "/?date=2026-11-23", &[HTML], b"").expect(200).text();
    assert_eq!(first.matches("href=\"/view/2026/11/23/").count(), 100);
    assert!(first.contains("href=\"/?date=2026-11-23&amp;skip=100\""), "{first}");
    let rest = front.send("GET", "/?date=2026-11-23&skip=100", &[HTML], b"").expect(200).text();
    assert_eq!(rest.matches("href=\"/view/2026/11/23/").count(), 20);
    let none = front.send("GET", "/?date=2026-11-24", &[HTML], b"").expect(200).text();
    assert!(none.contains("no receipts of this day"), "{none}");
    front.send("GET", "/?date=tomorrow", &[HTML], b"").expect(400);
}

#[test]
fn trouble_is_a_page_to_people_and_json_to_programs() {
    let stand = Stand::new();
    let mut issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    let hostile = "%22%3E%3Cscript%3Ealert(1)%3C/script%3E";
    let page = front.send("GET", &format!("/view?id={hostile}"), &[HTML], b"").expect(404);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(
        page.text().contains("No such receipt") && !page.text().contains("<script>alert"),
        "{}",
        page.text()
    );
    let image = front.send("GET", "/receipts/nothing", &[("accept", "image/png,image/*")], b"").expect(404);
    assert_eq!(image.code(), "not_found");
    let chinese = front.send("GET", "/view/nothing", &[HTML, ("accept-language", "zh")], b"").expect(404);
    assert!(chinese.text().contains("未找到回单"));
    assert!(front.send("GET", "/view?id=", &[HTML], b"").expect(400).text().contains("not a receipt number"));
    issuer.kill();
    let down = front.send("GET", "/view?id=x", &[HTML], b"").expect(502);
    assert!(down.text().contains("found by day"), "{}", down.text());
    // A path with hostile letters is shown as text.
    let issuer = stand.issuer(&[]);
    issuer.put(&format!("/receipts/2026/11/23/{}", hostile.replace("%3C/", "%3C")), b"x").expect(201);
    let list = front.send("GET", "/?date=2026-11-23", &[HTML], b"").expect(200).text();
    assert!(list.contains("&lt;script&gt;") && !list.contains("<script>alert"), "{list}");
}

/// The page says "verified" and shows the hash: a checksum is not enough for that.
#[test]
fn the_page_of_a_receipt_that_only_looks_right_says_corrupt() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    issuer.put("/receipts/d/r.png?id=R", &image(9000, 1)).expect(201);
    assert!(front.send("GET", "/view/d/r.png", &[HTML], b"").expect(200).text().contains("Verified"));
    let forged = crate::forge::forge(&stand.disk(), "d/r.png");
    assert!(front.get("/receipts/d/r.png").expect(200).body == forged);
    let hash = blake3::hash(&image(9000, 1)).to_hex();
    assert_eq!(front.get(&format!("/receipts/d/r.png?hash={hash}")).expect(500).code(), "corrupt");
    for target in ["/view/d/r.png", "/view?id=R"] {
        let page = front.send("GET", target, &[HTML], b"").expect(500).text();
        assert!(!page.contains("Verified"), "{page}");
    }
}
