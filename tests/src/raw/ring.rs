//! A split ring (virtio 1.2, 2.7), the driver's side, written by hand so that anything can be put into it.

use std::collections::HashMap;

use super::memory::Memory;

/// Flags of a descriptor.
pub mod desc_flags {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// One descriptor as it stands in the table.
#[derive(Debug, Clone, Copy, Default)]
pub struct Desc {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`desc_flags`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

impl Desc {
    /// Bytes of a descriptor.
    pub const SIZE: usize = 16;

    /// As it stands in the table.
    pub fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A ring in guest memory and what the driver knows of it.
#[derive(Debug)]
pub struct Ring {
    desc: u64,
    avail: u64,
    used: u64,
    size: u16,
    next_avail: u16,
    next_used: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl Ring {
    /// Lays out a ring of `size` entries whose indices begin at `start`.
    pub fn new(memory: &mut Memory, size: u16, start: u16) -> Self {
        let entries = usize::from(size);
        let desc = memory.take(Desc::SIZE * entries);
        let avail = memory.take(6 + 2 * entries);
        let used = memory.take(6 + 8 * entries);
        let free = (0..size).rev().collect();
        let chains = HashMap::new();
        let ring = Self { desc, avail, used, size, next_avail: start, next_used: start, free, chains };
        memory.store(ring.avail + 2, start);
        memory.store(ring.used + 2, start);
        // As a device before this one would have left it: tell me of the next entry.
        memory.store(ring.avail_event(), start);
        ring
    }

    /// Guest address of the descriptor table.
    pub fn desc_table(&self) -> u64 {
        self.desc
    }

    /// Guest address of the available ring.
    pub fn avail_ring(&self) -> u64 {
        self.avail
    }

    /// Guest address of the used ring.
    pub fn used_ring(&self) -> u64 {
        self.used
    }

    /// The index after the last used entry, seen or not.
    pub fn used_index(&self, memory: &Memory) -> u16 {
        memory.load(self.used + 2)
    }

    /// Takes free descriptors from the other end from now on: heads that come later are lower.
    pub fn turn_round(&mut self) {
        self.free.reverse();
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors that no chain uses.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// The index that the next published entry gets.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Writes one descriptor, whatever is in it.
    pub fn write_desc(&self, memory: &Memory, index: u16, desc: Desc) {
        memory.write(self.desc + 16 * u64::from(index), &desc.bytes());
    }

    /// Links `descs` into a chain of free descriptors; returns its head. Nothing is published yet.
    pub fn link(&mut self, memory: &Memory, descs: &[Desc]) -> u16 {
        assert!(
            descs.len() <= self.free.len(),
            "{} descriptors asked, {} free",
            descs.len(),
            self.free.len()
        );
        let indices = self.free.split_off(self.free.len() - descs.len());
        for (position, desc) in descs.iter().enumerate() {
            let mut desc = *desc;
            if let Some(next) = indices.get(position + 1) {
                desc.flags |= desc_flags::NEXT;
                desc.next = *next;
            }
            self.write_desc(memory, indices[position], desc);
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        head
    }

    /// Puts a head into the available ring; the device may take it from now on.
    pub fn publish(&mut self, memory: &Memory, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        memory.store(self.avail + 4 + 2 * slot, head);
        self.set_avail_index(memory, self.next_avail.wrapping_add(1));
    }

    /// Sets the available index, whatever it is.
    pub fn set_avail_index(&mut self, memory: &Memory, index: u16) {
        self.next_avail = index;
        memory.store(self.avail + 2, index);
    }

    /// True when the device wants to be told of the entries since `old`.
    pub fn wants_kick(&self, memory: &Memory, old: u16, event_idx: bool) -> bool {
        if !event_idx {
            return memory.load::<u16>(self.used) & 1 == 0;
        }
        let event: u16 = memory.load(self.avail_event());
        self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(old)
    }

    /// True when the device wants to be told of the entry that will be published next.
    pub fn wants_next_kick(&self, memory: &Memory, event_idx: bool) -> bool {
        if event_idx {
            memory.load::<u16>(self.avail_event()) == self.next_avail
        } else {
            memory.load::<u16>(self.used) & 1 == 0
        }
    }

    /// Writes the index after which the device wants to be told, for it.
    pub fn set_kick_event(&self, memory: &Memory, index: u16) {
        memory.store(self.avail_event(), index);
    }

    /// The index after which the device wants to be told.
    pub fn kick_event(&self, memory: &Memory) -> u16 {
        memory.load(self.avail_event())
    }

    fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }

    /// Asks to be told of the next used entry.
    pub fn ask_for_call(&self, memory: &Memory) {
        self.ask_for_call_after(memory, 0);
    }

    /// Asks to be told of the used entry that comes after `count` others.
    pub fn ask_for_call_after(&self, memory: &Memory, count: u16) {
        memory.store(self.avail + 4 + 2 * u64::from(self.size), self.next_used.wrapping_add(count));
    }

    /// Takes the next used entry: head and length.
    pub fn next_used(&mut self, memory: &Memory) -> Option<(u16, u32)> {
        if memory.load::<u16>(self.used + 2) == self.next_used {
            return None;
        }
        let entry = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let head = u16::try_from(memory.load::<u32>(entry)).expect("a used head is an index");
        let len = memory.load::<u32>(entry + 4);
        self.next_used = self.next_used.wrapping_add(1);
        let chain = self.chains.remove(&head).unwrap_or_else(|| panic!("head {head} was not in flight"));
        self.free.extend(chain);
        Some((head, len))
    }
}
