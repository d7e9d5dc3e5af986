//! A writer of pcapng (draft-ietf-opsawg-pcapng): one section, one interface of raw IP packets, a comment on each packet.

use std::io::{self, Write};

/// Raw IP, by the version in the first nibble (LINKTYPE_RAW).
const LINKTYPE_RAW: u16 = 101;
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const MAGIC: u32 = 0x1a2b_3c4d;

const END: u16 = 0;
const COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const SHB_USERAPPL: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// Writes a capture.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    out: W,
}

/// One packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    /// Microseconds since 1970.
    pub(crate) at_us: u64,
    /// Whether it left this host or one of its containers.
    pub(crate) outbound: bool,
    /// Its whole length.
    pub(crate) length: u32,
    /// Its first bytes.
    pub(crate) bytes: &'a [u8],
    /// What is to be known of it.
    pub(crate) comment: &'a str,
}

impl<W: Write> Writer<W> {
    /// Begins a section with the overlay's interface.
    pub(crate) fn new(out: W, interface: &str, snaplen: u32) -> io::Result<Self> {
        let mut writer = Self { out };
        let mut section = Vec::new();
        section.extend_from_slice(&MAGIC.to_le_bytes());
        section.extend_from_slice(&[1, 0, 0, 0]);
        // The section's length is not known ahead.
        section.extend_from_slice(&u64::MAX.to_le_bytes());
        option(&mut section, SHB_USERAPPL, concat!("overlayctl ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(&mut section, END, &[]);
        writer.block(SECTION, &section)?;
        let mut described = Vec::new();
        described.extend_from_slice(&u32::from(LINKTYPE_RAW).to_le_bytes());
        described.extend_from_slice(&snaplen.to_le_bytes());
        option(&mut described, IF_NAME, interface.as_bytes());
        // Microseconds.
        option(&mut described, IF_TSRESOL, &[6]);
        option(&mut described, END, &[]);
        writer.block(INTERFACE, &described)?;
        Ok(writer)
    }

    /// Writes a packet.
    pub(crate) fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&((packet.at_us >> 32) as u32).to_le_bytes());
        body.extend_from_slice(&(packet.at_us as u32).to_le_bytes());
        body.extend_from_slice(&(packet.bytes.len() as u32).to_le_bytes());
        body.extend_from_slice(&packet.length.max(packet.bytes.len() as u32).to_le_bytes());
        padded(&mut body, packet.bytes);
        // Inbound and outbound as the host sees them.
        let direction: u32 = if packet.outbound { 2 } else { 1 };
        option(&mut body, EPB_FLAGS, &direction.to_le_bytes());
        option(&mut body, COMMENT, packet.comment.as_bytes());
        option(&mut body, END, &[]);
        self.block(PACKET, &body)
    }

    /// Writes how many packets were lost, at the end.
    pub(crate) fn finish(&mut self, at_us: u64, lost: u64) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&((at_us >> 32) as u32).to_le_bytes());
        body.extend_from_slice(&(at_us as u32).to_le_bytes());
        option(&mut body, ISB_IFDROP, &lost.to_le_bytes());
        option(&mut body, END, &[]);
        self.block(STATISTICS, &body)?;
        self.flush()
    }

    /// Hands on what is buffered.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let length = (12 + body.len()) as u32;
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(body)?;
        self.out.write_all(&length.to_le_bytes())
    }
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    padded(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_say_their_length_twice() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, "overlay0", 100).expect("memory");
        let packet = Packet { at_us: 1 << 40, outbound: true, length: 1500, bytes: &[0x45; 33], comment: "dropped" };
        writer.packet(&packet).expect("memory");
        writer.finish(1 << 40, 7).expect("memory");
        let (mut at, mut kinds) = (0, Vec::new());
        while at < bytes.len() {
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
            let length = word(at + 4) as usize;
            assert_eq!((length % 4, word(at + length - 4) as usize), (0, length));
            kinds.push(word(at));
            at += length;
        }
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, STATISTICS]);
    }
}
