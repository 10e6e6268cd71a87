//! BPF's instructions (Linux, Documentation/bpf/standardization/instruction-set.rst), and jumps between them.

use std::os::fd::RawFd;

const PSEUDO_MAP_FD: u8 = 1;

/// One instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// The destination in one half, the source in the other.
    registers: u8,
    offset: i16,
    immediate: i32,
}

pub const R0: u8 = 0;
pub const R1: u8 = 1;
pub const R2: u8 = 2;
pub const R3: u8 = 3;
pub const R4: u8 = 4;
pub const R5: u8 = 5;
pub const R6: u8 = 6;
/// The end of the stack.
pub const R10: u8 = 10;

// Sizes of loads and stores.
pub const WORD: u8 = 0x00;
pub const HALF: u8 = 0x08;
pub const BYTE: u8 = 0x10;
pub const DOUBLE: u8 = 0x18;

// Conditions of jumps.
pub const EQUAL: u8 = 0x10;
pub const LESS_OR_EQUAL: u8 = 0xb0;
pub const GREATER: u8 = 0x20;
pub const NOT_EQUAL: u8 = 0x50;

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    let registers =
        if cfg!(target_endian = "little") { destination | source << 4 } else { destination << 4 | source };
    Instruction { code, registers, offset, immediate }
}

/// The target of a jump. The distance is filled in when all instructions are there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Label {
    V6,
    LookUp,
    Pass,
}

#[derive(Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    fn put(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: i32) {
        self.code.push(instruction(code, destination, source, offset, immediate));
    }

    /// `to = from`
    pub fn copy(&mut self, to: u8, from: u8) {
        self.put(0xbf, to, from, 0, 0);
    }

    /// `register = number`
    pub fn set(&mut self, register: u8, number: i32) {
        self.put(0xb7, register, 0, 0, number);
    }

    /// `register += number`
    pub fn add(&mut self, register: u8, number: i32) {
        self.put(0x07, register, 0, 0, number);
    }

    /// `register &= number`
    pub fn mask(&mut self, register: u8, number: i32) {
        self.put(0x57, register, 0, 0, number);
    }

    /// `to = *(size *)(from + offset)`
    pub fn load(&mut self, size: u8, to: u8, from: u8, offset: i16) {
        self.put(0x61 | size, to, from, offset, 0);
    }

    /// `*(size *)(R10 + offset) = from`
    pub fn store(&mut self, size: u8, offset: i16, from: u8) {
        self.put(0x63 | size, R10, from, offset, 0);
    }

    /// `register = map`
    pub fn map(&mut self, register: u8, map: RawFd) {
        self.put(0x18, register, PSEUDO_MAP_FD, 0, map);
        self.put(0, 0, 0, 0, 0);
    }

    /// `if register ? number goto label`
    pub fn jump_if(&mut self, condition: u8, register: u8, number: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x05 | condition, register, 0, 0, number);
    }

    /// `if register ? other goto label`
    pub fn jump_if_register(&mut self, condition: u8, register: u8, other: u8, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x0d | condition, register, other, 0, 0);
    }

    pub fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x05, 0, 0, 0, 0);
    }

    pub fn call(&mut self, helper: i32) {
        self.put(0x85, 0, 0, 0, helper);
    }

    pub fn exit(&mut self) {
        self.put(0x95, 0, 0, 0, 0);
    }

    pub fn here(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    pub fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let found = self.labels.iter().find(|(one, _)| *one == label);
            let (_, target) = found.expect("each label is placed");
            self.code[at].offset = (target - at - 1) as i16;
        }
        self.code
    }
}
