//! ARP for IPv4 on Ethernet (RFC 826).

use transport::ethernet::MacAddress;

/// Bytes of a message. Behind it comes Ethernet's padding.
pub const SIZE: usize = 28;
/// Ethernet, IPv4, and the sizes of their addresses.
const KINDS: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target?
    Request,
    /// The sender has its address.
    Reply,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is for.
    pub operation: Operation,
    /// Who sent it.
    pub sender_mac: MacAddress,
    /// Its address, 0 if it asks whether it may have the target's (RFC 5227).
    pub sender: u32,
    /// Whom it is for. Meaningless in a request.
    pub target_mac: MacAddress,
    /// The address that is asked for, or of whoever asked.
    pub target: u32,
}

impl Message {
    /// Read a message. None if it isn't about IPv4 on Ethernet, or is too short.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<SIZE>()?;
        if bytes[..6] != KINDS {
            return None;
        }
        let operation = match bytes[6..8] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: bytes[8..14].try_into().ok()?,
            sender: u32::from_be_bytes(bytes[14..18].try_into().ok()?),
            target_mac: bytes[18..24].try_into().ok()?,
            target: u32::from_be_bytes(bytes[24..28].try_into().ok()?),
        })
    }

    /// Return the message's bytes.
    pub fn bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..6].copy_from_slice(&KINDS);
        bytes[7] = if self.operation == Operation::Request { 1 } else { 2 };
        bytes[8..14].copy_from_slice(&self.sender_mac);
        bytes[14..18].copy_from_slice(&self.sender.to_be_bytes());
        bytes[18..24].copy_from_slice(&self.target_mac);
        bytes[24..28].copy_from_slice(&self.target.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Message = Message {
        operation: Operation::Request,
        sender_mac: [2, 0, 0, 0, 0, 9],
        sender: 0x0a00_0001,
        target_mac: [0; 6],
        target: 0x0a00_0002,
    };

    #[test]
    fn a_message_is_read_as_it_was_written_padding_or_not() {
        let bytes = ASKED.bytes();
        assert_eq!(bytes[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(bytes[8..], [2, 0, 0, 0, 0, 9, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        assert_eq!(Message::parse(&bytes), Some(ASKED));
        let reply = Message { operation: Operation::Reply, ..ASKED };
        assert_eq!(Message::parse(&[&reply.bytes()[..], &[0xaa; 18]].concat()), Some(reply));
    }

    #[test]
    fn what_is_too_short_or_about_something_else_is_none() {
        let bytes = ASKED.bytes();
        for size in 0..SIZE {
            assert_eq!(Message::parse(&bytes[..size]), None, "{size}");
        }
        for at in 0..8 {
            let mut changed = bytes;
            changed[at] ^= 8;
            assert_eq!(Message::parse(&changed), None, "{at}");
        }
    }
}
