//! The vhost-user conversation: what is offered and what is legal.

use receiptdisk_tests::raw::{Message, RawGuest, Request, Setup, Wire, code, feature, protocol, status};
use receiptdisk_tests::{Scratch, Stand, pattern};

const COMMON: u64 = feature::VERSION_1
    | feature::PROTOCOL_FEATURES
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::MQ
    | feature::FLUSH
    | feature::SEG_MAX
    | feature::SIZE_MAX
    | feature::BLK_SIZE
    | feature::TOPOLOGY;

#[test]
fn features_are_exactly_these() {
    let stand = Stand::pair();
    let zeroing = feature::DISCARD | feature::WRITE_ZEROES;
    assert_eq!(stand.raw("issuer").features(), COMMON | zeroing, "of a writer");
    let reader = stand.raw("front").features();
    assert_eq!(reader & !zeroing, COMMON | feature::RO, "of a reader: {reader:#x}");
}

#[test]
fn discard_can_be_ignored() {
    let stand = Stand::serve(Scratch::new(), |serve| serve.rw("issuer").arg("--discard").arg("ignore"));
    let mut guest = stand.started("issuer");
    let data = pattern(1, 0, 4096);
    guest.request(&Request::write(0, &data));
    let outcome = guest.request(&Request::discard(&[(0, 8)]));
    assert_ne!(outcome.status, status::IOERR);
    let read = guest.request(&Request::read(0, 4096));
    assert!(read.data == data, "an ignored discard keeps the data");
}

#[test]
fn protocol_features_cover_what_vmms_need() {
    let stand = Stand::pair();
    let guest = stand.raw("issuer");
    let needed = protocol::CONFIG | protocol::MQ | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS;
    assert_eq!(guest.front().protocol_features() & needed, needed);
    assert_eq!(guest.front().get(code::GET_QUEUE_NUM).unwrap(), 64);
    assert!(guest.front().get(code::GET_MAX_MEM_SLOTS).unwrap() >= 32);
}

#[test]
fn config_tells_the_disk() {
    let stand = Stand::pair();
    for name in ["issuer", "front"] {
        let config = stand.raw(name).front().config();
        assert_eq!(config.capacity, Stand::SIZE / 512);
        assert!(config.seg_max >= 126 && config.size_max >= 4096, "{config:?}");
        assert!(config.blk_size == 512 || config.blk_size == 4096, "{config:?}");
        assert_eq!(config.num_queues, 64);
        let physical = config.blk_size << config.physical_block_exp;
        assert!((512..=65536).contains(&physical), "{config:?}");
        assert_eq!(config.alignment_offset, 0);
        assert!(config.max_write_zeroes_seg >= 1 && config.max_write_zeroes_sectors > 0, "{config:?}");
        assert!(config.max_discard_seg >= 1 && config.max_discard_sectors > 0, "{config:?}");
        assert!(config.discard_sector_alignment > 0, "{config:?}");
    }
}

#[test]
fn config_is_the_same_at_every_offset_and_length() {
    let stand = Stand::pair();
    let guest = stand.raw("issuer");
    let whole = guest.front().config_bytes(0, 60).unwrap();
    assert_eq!(whole.len(), 60);
    for offset in 0..60_u32 {
        for len in 1..=60 - offset {
            let part = guest.front().config_bytes(offset, len).unwrap();
            let [offset, len] = [offset, len].map(|n| usize::try_from(n).unwrap());
            assert_eq!(part, whole[offset..offset + len], "{len} bytes at {offset}");
        }
    }
}

#[test]
fn messages_may_come_byte_by_byte() {
    let stand = Stand::pair();
    let wire = Wire::connect(&stand.socket("issuer")).unwrap().dripping();
    let mut guest = RawGuest::greet(wire);
    guest.start(Setup { queues: 2, regions: 2, ..Setup::default() });
    guest.assert_works();
}

#[test]
fn owner_may_be_set_again() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    for _ in 0..3 {
        guest.front().must(&Message::new(code::SET_OWNER, &[]), &[]);
        guest.assert_works();
    }
}

#[test]
fn two_messages_may_come_in_one_piece() {
    let stand = Stand::pair();
    let mut guest = stand.raw("issuer");
    let wire = guest.front().wire();
    let requests = [code::GET_FEATURES, code::GET_PROTOCOL_FEATURES, code::GET_QUEUE_NUM];
    let bytes = requests.map(|request| Message::new(request, &[]).bytes()).concat();
    // One and a half message, then the other half and one more.
    wire.send_bytes(&bytes[..18], &[]).unwrap();
    wire.send_bytes(&bytes[18..], &[]).unwrap();
    for request in requests {
        assert_eq!(wire.receive().unwrap().0.request, request);
    }
    guest.start_queues(1);
    guest.assert_works();
}

#[test]
fn memory_regions_may_come_in_any_order() {
    let stand = Stand::pair();
    let mut guest = stand.raw("issuer");
    guest.accept(!feature::CONFIG_WCE);
    let mut regions = guest.memory().regions(8);
    regions.reverse();
    regions.swap(2, 5);
    let memory = std::mem::take(guest.memory());
    guest.front().set_mem_table(&memory, &regions);
    *guest.memory() = memory;
    guest.start_rings(Setup::default());
    guest.assert_works();
}

#[test]
fn memory_can_be_told_again_while_queues_run() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    guest.assert_works();
    for count in [4, 1, 8] {
        guest.tell_memory(count);
        guest.assert_works();
    }
}

#[test]
fn stopped_queue_tells_its_index_and_starts_again() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    guest.assert_works();
    assert_eq!(guest.stop_queue(0), 2);
    guest.restart_queue(0, 2);
    guest.assert_works();
    assert_eq!(guest.stop_queue(0), 4);
}

#[test]
fn stopping_a_queue_waits_for_what_is_in_flight() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    for index in 0..32_u64 {
        guest.publish(0, &Request::write(index * 512, &pattern(index, 0, 256 << 10)));
    }
    guest.kick(0);
    let taken = guest.stop_queue(0);
    for _ in 0..taken {
        let (_, outcome) = guest.poll_used(0).expect("what was taken is used before the answer");
        assert_eq!(outcome.status, status::OK);
    }
    assert!(guest.poll_used(0).is_none(), "nothing is used that was not counted");
}
