//! The change feed of the issuer.

use crate::stand::Stand;
use serde_json::Value;

fn paths(page: &Value) -> Vec<String> {
    let changes = page["changes"].as_array().unwrap();
    changes.iter().map(|change| change["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn changes_come_once_in_order_and_in_pages() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let mut client = issuer.client();
    for number in 0..25 {
        client.send("PUT", &format!("/receipts/n/{number}?id=id-{number}"), &[], b"x").expect(201);
    }
    assert!(stand.receipt(&["rm", "n/3"]).status.success());
    let (mut since, mut seen, mut pages) = (0_u64, Vec::new(), 0);
    loop {
        let page = issuer.get(&format!("/paths?since={since}&limit=10")).expect(200).json();
        assert!(page["changes"].as_array().unwrap().len() <= 10);
        seen.extend(paths(&page));
        since = page["next"].as_u64().unwrap();
        pages += 1;
        if page["more"] == false {
            break;
        }
    }
    let mut expected: Vec<String> = (0..25).map(|n| format!("n/{n}")).collect();
    expected.push("n/3".to_owned());
    assert_eq!(seen, expected);
    assert_eq!(pages, 3);
    // Nothing new at the end; whoever knows more than there is looks at another store, or at an older copy.
    let end = issuer.get(&format!("/paths?since={since}")).expect(200).json();
    assert!(paths(&end).is_empty());
    assert_eq!((&end["gap"], &end["store"]), (&false.into(), &issuer.get("/health").json()["store"]));
    for beyond in [since + 1, since + 1000] {
        let answer = issuer.get(&format!("/paths?since={beyond}"));
        assert_eq!(answer.expect(410).code(), "beyond_the_end");
    }
    let last = issuer.get(&format!("/paths?since={}", since - 1)).expect(200).json();
    assert_eq!(last["changes"][0]["removed"], true);
    // A client that has fallen behind resumes anywhere, also in the middle of a page that others have read.
    let middle = issuer.get("/paths?since=7&limit=1").expect(200).json();
    assert!(middle["changes"][0]["seq"].as_u64().unwrap() > 7);
}

#[test]
fn what_expired_with_its_segment_is_a_gap() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let run = |args: &[&str]| {
        let output = stand.receipt(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    run(&["policy", "set", "1", "1"]);
    let file = stand.path("file");
    std::fs::write(&file, vec![7; 900_000]).unwrap();
    for number in 0..4 {
        let path = format!("old/{number}");
        run(&["put", &path, file.to_str().unwrap(), "--class", "1", "--issued", "2001-02-03"]);
    }
    issuer.put("/receipts/new", b"x").expect(201);
    let page = issuer.get("/paths?since=0").expect(200).json();
    assert_eq!((paths(&page).len(), &page["gap"]), (5, &false.into()));
    let since = page["next"].as_u64().unwrap();
    run(&["expire"]);
    for from in [0, 1, since] {
        let page = issuer.get(&format!("/paths?since={from}")).expect(200).json();
        assert_eq!(page["gap"], true, "{from}: {page}");
        assert!(!paths(&page).contains(&"old/0".to_owned()), "{page}");
        let next = page["next"].as_u64().unwrap();
        assert_eq!(issuer.get(&format!("/paths?since={next}")).expect(200).json()["gap"], false);
    }
}

#[test]
fn a_waiting_request_sees_what_comes_by_http_and_by_the_socket() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let file = stand.path("file");
    std::fs::write(&file, b"by the socket").unwrap();
    let mut since = 0;
    for round in 0..3 {
        let answer = std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| issuer.get(&format!("/paths?since={since}&wait=25")).expect(200).json());
            crate::stand::until("the request to wait", || {
                // Itself and the one that waits.
                (issuer.metric("requests_running") >= 2.0).then_some(())
            });
            if round == 1 {
                let output = stand.receipt(&["put", "1", file.to_str().unwrap()]);
                assert!(output.status.success(), "{output:?}");
            } else {
                issuer.put(&format!("/receipts/{round}"), b"by http").expect(201);
            }
            waiting.join().unwrap()
        });
        assert_eq!(paths(&answer), [round.to_string()]);
        since = answer["next"].as_u64().unwrap();
    }
    assert!(paths(&issuer.get(&format!("/paths?since={since}&wait=0")).expect(200).json()).is_empty());
}
