//! A virtio device on the PCI bus, in the layout of virtio 1.x (virtio 1.2, 4.1).

use super::Machine;

/// A device's function on bus 0.
#[derive(Debug)]
pub struct Function {
    slot: u8,
    /// Where the parts of the device are, by their `cfg_type`.
    parts: [u64; 5],
    notify_multiplier: u64,
}

/// `cfg_type` of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Part {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
}

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const COMMAND: u8 = 0x04;
const MEMORY_AND_MASTER: u32 = 0b110;
const FIRST_CAPABILITY: u8 = 0x34;
const VENDOR_CAPABILITY: u8 = 0x09;
const BAR_4: u8 = 0x20;
/// Where windows of devices are put, a MiB for each slot.
const WINDOWS: u32 = 0xe000_0000;

impl Function {
    /// Finds the virtio device in `slot`, gives it a window, and lets it use memory.
    #[track_caller]
    pub fn find(machine: &mut Machine, slot: u8) -> Self {
        let mut function = Self { slot, parts: [0; 5], notify_multiplier: 0 };
        assert_eq!(function.config(machine, 0) & 0xffff, 0x1af4, "no virtio device in slot {slot}");
        let window = WINDOWS + (u32::from(slot) << 20);
        function.set_config(machine, BAR_4, window);
        function.set_config(machine, BAR_4 + 4, 0);
        function.set_config(machine, COMMAND, MEMORY_AND_MASTER);
        let mut at = function.config(machine, FIRST_CAPABILITY).to_le_bytes()[0];
        while at != 0 {
            let [id, next, _, kind] = function.config(machine, at).to_le_bytes();
            if id == VENDOR_CAPABILITY && (1..=4).contains(&kind) {
                let [bar, ..] = function.config(machine, at + 4).to_le_bytes();
                assert_eq!(bar, 4, "all parts are in one window");
                let offset = function.config(machine, at + 8);
                function.parts[usize::from(kind)] = u64::from(window + offset);
                if kind == 2 {
                    function.notify_multiplier = u64::from(function.config(machine, at + 16));
                }
            }
            at = next;
        }
        assert!(function.parts[1..].iter().all(|part| *part != 0), "a part of the device is missing");
        function
    }

    /// The place of one field.
    pub fn at(&self, part: Part, offset: u64) -> u64 {
        self.parts[part as usize] + offset
    }

    /// Where a queue is notified.
    pub fn notify_at(&self, queue_notify_off: u64) -> u64 {
        self.at(Part::Notify, queue_notify_off * self.notify_multiplier)
    }

    /// Lets the device be taken out of its slot, as the guest's ACPI does once it has been asked.
    pub fn eject(self, machine: &mut Machine) {
        const EJECT: u16 = 0xae08;
        machine.out_u32(EJECT, 1 << self.slot);
    }

    fn config(&self, machine: &mut Machine, register: u8) -> u32 {
        machine.out_u32(CONFIG_ADDRESS, self.address(register));
        machine.in_u32(CONFIG_DATA)
    }

    fn set_config(&self, machine: &mut Machine, register: u8, value: u32) {
        machine.out_u32(CONFIG_ADDRESS, self.address(register));
        machine.out_u32(CONFIG_DATA, value);
    }

    fn address(&self, register: u8) -> u32 {
        0x8000_0000 | u32::from(self.slot) << 11 | u32::from(register)
    }
}
