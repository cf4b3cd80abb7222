use std::fs::File;

use super::*;

fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
}

fn error(request: FrontendReq, body: &[u8], descriptors: usize) -> Option<MessageError> {
    Message::decode(request as u32, body, fds(descriptors)).err()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn region(base: u64) -> Vec<u8> {
    [base, 0x1000, base + 0x1_0000, 0].iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn header(request: u32, flags: u32, size: u32) -> Result<Header, MessageError> {
    Header::decode(words(&[request, flags, size]).try_into().unwrap())
}

#[test]
fn headers_with_wrong_flags_or_sizes_are_refused() {
    assert_eq!(header(1, 1, 0), Ok(Header { request: 1, need_reply: false, body_bytes: 0 }));
    assert_eq!(header(1, 9, 8), Ok(Header { request: 1, need_reply: true, body_bytes: 8 }));
    for flags in [0, 2, 3, 5, 0x11, 0x8000_0001, u32::MAX] {
        assert_eq!(header(1, flags, 0), Err(MessageError::BadFlags(flags)));
    }
    for size in [4097, u32::MAX] {
        assert_eq!(header(1, 1, size), Err(MessageError::TooLong(size)));
    }
}

#[test]
fn unknown_requests_are_refused() {
    for request in [0, 6, 7, 19, 22, 33, 39, 40, 99, u32::MAX] {
        let refused = Message::decode(request, &[], Vec::new()).err();
        assert_eq!(refused, Some(MessageError::UnknownRequest(request)));
    }
}

#[test]
fn every_request_wants_exactly_its_body() {
    use FrontendReq as R;
    let bodies = [
        (R::GET_FEATURES, 0),
        (R::SET_FEATURES, 8),
        (R::SET_OWNER, 0),
        (R::GET_PROTOCOL_FEATURES, 0),
        (R::SET_PROTOCOL_FEATURES, 8),
        (R::GET_QUEUE_NUM, 0),
        (R::GET_MAX_MEM_SLOTS, 0),
        (R::SET_VRING_NUM, 8),
        (R::SET_VRING_ADDR, 40),
        (R::SET_VRING_BASE, 8),
        (R::GET_VRING_BASE, 8),
        (R::SET_VRING_ENABLE, 8),
        (R::REM_MEM_REG, 40),
    ];
    for (request, len) in bodies {
        assert_eq!(error(request, &vec![0; len], 0), None, "{request:?}");
        for wrong in [len + 1, len + 8] {
            let bad = MessageError::BadLength { request: request as u32, bytes: wrong };
            assert_eq!(error(request, &vec![0; wrong], 0), Some(bad));
        }
        if let Some(shorter) = len.checked_sub(1) {
            assert!(error(request, &vec![0; shorter], 0).is_some());
        }
        assert!(error(request, &vec![0; len], 2).is_some(), "{request:?} takes no descriptors");
    }
}

#[test]
fn ring_descriptors_come_exactly_when_announced() {
    let kick =
        |value: u64, descriptors| error(FrontendReq::SET_VRING_KICK, &value.to_le_bytes(), descriptors);
    assert_eq!(kick(3, 1), None);
    assert_eq!(kick(0x103, 0), None);
    assert!(kick(3, 0).is_some() && kick(3, 2).is_some() && kick(0x103, 1).is_some());
    assert_eq!(kick(0x200, 1), Some(MessageError::BadBits { request: 12 }));
    let Ok(Message::SetVringKick(VringFd { index: 255, fd: Some(_) })) =
        Message::decode(12, &255u64.to_le_bytes(), fds(1))
    else {
        panic!("index or descriptor lost")
    };
}

#[test]
fn inflight_regions_come_with_or_without_padding_and_with_one_descriptor() {
    use FrontendReq as R;
    for len in [20, 24] {
        assert_eq!(error(R::GET_INFLIGHT_FD, &vec![0; len], 0), None);
        assert_eq!(error(R::SET_INFLIGHT_FD, &vec![0; len], 1), None);
    }
    assert!(error(R::GET_INFLIGHT_FD, &[0; 24], 1).is_some());
    for (len, descriptors) in [(19, 1), (25, 1), (0, 1), (24, 0), (24, 2)] {
        assert!(error(R::SET_INFLIGHT_FD, &vec![0; len], descriptors).is_some(), "{len} {descriptors}");
    }
    let mut body = [vec![0; 16], vec![2, 0, 128, 0]].concat();
    let Ok(Message::GetInflightFd(wanted)) = Message::decode(31, &body, Vec::new()) else {
        panic!("shape lost")
    };
    assert_eq!((wanted.queues, wanted.queue_size), (2, 128));
    body[0] = 7;
    assert_eq!(wanted.answer(7), body, "as long as the question");
}

#[test]
fn memory_tables_need_as_many_regions_and_descriptors_as_they_say() {
    let table = |count: u32, regions: usize, descriptors| {
        let mut body = words(&[count, 0]);
        (0..regions).for_each(|at| body.extend(region(at as u64 * 0x1000)));
        error(FrontendReq::SET_MEM_TABLE, &body, descriptors)
    };
    assert_eq!(table(2, 2, 2), None);
    for (count, regions, descriptors) in
        [(0, 0, 0), (8, 1, 1), (1, 2, 1), (u32::MAX, 1, 1), (2, 2, 1), (2, 2, 3)]
    {
        assert!(table(count, regions, descriptors).is_some(), "{count} {regions} {descriptors}");
    }
}

#[test]
fn replies_carry_version_and_reply_flag() {
    let reply = encode_reply(1, &7u64.to_le_bytes());
    assert_eq!(reply[..12], words(&[1, 5, 8]));
    assert_eq!(reply[12..], 7u64.to_le_bytes());
}
