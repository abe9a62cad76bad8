use super::*;
use proptest::prelude::*;

/// Byte order of what a test writes.
#[derive(Clone, Copy, Debug)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u16(self, value: u16) -> [u8; 2] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }

    fn u32(self, value: u32) -> [u8; 4] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }

    fn u64(self, value: u64) -> [u8; 8] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }

    fn words(self, words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|&word| self.u32(word)).collect()
    }

    /// A pcap file of frames with seconds, fraction and length on the wire.
    fn pcap(self, magic: u32, link_type: u32, frames: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
        let mut file = self.u32(magic).to_vec();
        file.extend([self.u16(2), self.u16(4)].concat());
        file.extend(self.words(&[0, 0, 65_535, link_type]));
        for &(seconds, fraction, length, data) in frames {
            file.extend(self.words(&[seconds, fraction, u32::try_from(data.len()).unwrap(), length]));
            file.extend(data);
        }
        file
    }

    /// A block of a pcapng file, padded.
    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let padded = body.len().next_multiple_of(4);
        let length = u32::try_from(padded + 12).unwrap();
        let mut block = self.words(&[kind, length]);
        block.extend(body);
        block.resize(8 + padded, 0);
        block.extend(self.u32(length));
        block
    }

    fn section(self) -> Vec<u8> {
        let body = [&self.u32(0x1a2b_3c4d)[..], &self.u16(1), &self.u16(0), &self.u64(u64::MAX)].concat();
        self.block(0x0a0d_0d0a, &body)
    }

    fn interface(self, link_type: u16, snaplen: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = [&self.u16(link_type)[..], &self.u16(0), &self.u32(snaplen)].concat();
        for (code, value) in options {
            body.extend([self.u16(*code), self.u16(u16::try_from(value.len()).unwrap())].concat());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        self.block(1, &body)
    }

    fn enhanced(self, interface: u32, units: u64, length: u32, data: &[u8]) -> Vec<u8> {
        let (high, low) = (u32::try_from(units >> 32).unwrap(), u32::try_from(units & 0xffff_ffff).unwrap());
        let captured = u32::try_from(data.len()).unwrap();
        self.block(6, &[&self.words(&[interface, high, low, captured, length])[..], data].concat())
    }
}

const MICRO: u32 = 0xa1b2_c3d4;
const NANO: u32 = 0xa1b2_3c4d;
const FRAME: &[u8] = &[7; 61];

fn read(file: Vec<u8>) -> Result<Vec<Frame>, CaptureError> {
    Capture::new(io::Cursor::new(file))?.collect()
}

/// What is read before the error, and the error.
fn read_until_error(file: Vec<u8>) -> (usize, String) {
    let mut frames = 0;
    for frame in Capture::new(io::Cursor::new(file)).unwrap() {
        match frame {
            Ok(_) => frames += 1,
            Err(error) => return (frames, error.to_string()),
        }
    }
    panic!("no error after {frames} frames");
}

fn whole(at: Duration) -> Frame {
    Frame { at, length: 61, data: FRAME.to_vec() }
}

#[test]
fn pcap_of_either_order_and_resolution_is_read() {
    for order in [Order::Little, Order::Big] {
        for (magic, nanoseconds) in [(MICRO, 5_000), (NANO, 5)] {
            let file = order.pcap(magic, 1, &[(9, 5, 61, FRAME), (10, 0, 1514, &FRAME[..20])]);
            let cut = Frame { at: Duration::from_secs(10), length: 1514, data: FRAME[..20].to_vec() };
            assert_eq!(read(file).unwrap(), [whole(Duration::new(9, nanoseconds)), cut], "{order:?} {magic:x}");
        }
    }
}

#[test]
fn pcapng_times_follow_each_interfaces_resolution_and_offset() {
    for order in [Order::Little, Order::Big] {
        let file = [
            order.section(),
            order.interface(1, 0, &[]),
            order.interface(1, 0, &[(9, &[9])]),
            order.interface(1, 0, &[(9, &[0x8a]), (14, &order.u64(100))]),
            order.block(0x0bad, &[1, 2, 3, 4]),
            order.enhanced(0, 2_000_003, 61, FRAME),
            order.enhanced(1, 7_000_000_003, 61, FRAME),
            order.enhanced(2, 1024 * 5 + 512, 61, FRAME),
        ];
        let expected = [Duration::new(2, 3_000), Duration::new(7, 3), Duration::new(105, 500_000_000)].map(whole);
        assert_eq!(read(file.concat()).unwrap(), expected, "{order:?}");
    }
}

#[test]
fn pcapng_sections_have_their_own_order_and_interfaces() {
    let mut file = Vec::new();
    for order in [Order::Big, Order::Little] {
        file.extend([order.section(), order.interface(1, 0, &[]), order.enhanced(0, 1, 61, FRAME)].concat());
    }
    file.extend([Order::Big.section(), Order::Big.enhanced(0, 1, 61, FRAME)].concat());
    let (frames, error) = read_until_error(file);
    assert_eq!(frames, 2);
    assert!(error.ends_with("a packet of interface 0, which the capture does not describe"), "{error}");
}

#[test]
fn simple_packets_end_where_snaplen_says() {
    let order = Order::Little;
    let simple = |length: u32, data: &[u8]| order.block(3, &[&order.u32(length), data].concat());
    let section = |snaplen| [order.section(), order.interface(1, snaplen, &[])].concat();
    assert_eq!(read([section(0), simple(61, FRAME)].concat()).unwrap(), [whole(Duration::ZERO)]);
    let cut = Frame { at: Duration::ZERO, length: 62, data: FRAME.to_vec() };
    assert_eq!(read([section(61), simple(62, FRAME)].concat()).unwrap(), [cut]);
}

#[test]
fn what_is_no_capture_is_said_so() {
    for (file, expected) in [
        (&b""[..], "the file is empty"),
        (b"[node]\ninterface = \"eth0\"\n", "neither a pcap nor a pcapng"),
        (&Order::Little.pcap(MICRO, 1, &[])[..23], "after packet 0, at byte 0: the capture is cut short"),
        (&Order::Big.section()[..20], "neither a pcap nor a pcapng"),
    ] {
        let error = Capture::new(io::Cursor::new(file.to_vec())).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn cut_capture_gives_what_is_whole_and_says_where_it_ends() {
    let order = Order::Little;
    let pcap = order.pcap(MICRO, 1, &[(1, 0, 61, FRAME), (2, 0, 61, FRAME)]);
    let second = 24 + 16 + 61;
    for cut in [second + 1, second + 16, pcap.len() - 1] {
        let (frames, error) = read_until_error(pcap[..cut].to_vec());
        assert_eq!(
            (frames, error),
            (1, format!("after packet 1, at byte {second}: the capture is cut short here, or damaged"))
        );
    }
    let packet = order.enhanced(0, 1, 61, FRAME);
    let pcapng = [order.section(), order.interface(1, 0, &[]), packet.clone(), packet].concat();
    let (frames, error) = read_until_error(pcapng[..pcapng.len() - 1].to_vec());
    assert!(frames == 1 && error.contains("cut short"), "{error}");
}

#[test]
fn records_that_lie_are_errors() {
    let order = Order::Little;
    let section = [order.section(), order.interface(1, 0, &[])].concat();
    let mut claims = order.pcap(MICRO, 1, &[(1, 0, 61, FRAME)]);
    claims[24 + 8..24 + 12].copy_from_slice(&order.u32(u32::MAX));
    let mut beyond = order.enhanced(0, 1, 61, FRAME);
    beyond[20..24].copy_from_slice(&order.u32(1000));
    for (file, expected) in [
        (claims, "longer than 16777216 bytes"),
        ([&section[..], &order.block(6, &[0; 8]), &[0; 64]].concat(), "contradicts the format"),
        ([&section[..], &beyond, &[0; 4096]].concat(), "at byte 48: the capture is cut short here, or damaged"),
        ([&section[..], &order.block(2, &[0; 40])].concat(), "obsolete Packet Block"),
        (order.pcap(MICRO, 113, &[(1, 0, 61, FRAME)]), "link type 113: only Ethernet"),
        ([order.section(), order.interface(276, 0, &[]), order.enhanced(0, 0, 61, FRAME)].concat(), "link type 276"),
    ] {
        let (frames, error) = read_until_error(file);
        assert!(frames == 0 && error.contains(expected), "{error}");
    }
}

#[test]
fn times_before_the_epoch_and_beyond_reason_are_bounded() {
    let interface = |resolution, offset| Interface { link_type: 1, snaplen: 0, resolution, offset };
    assert_eq!(interface(MICROSECONDS, i64::MIN).time(5), Duration::new(0, 5_000));
    assert_eq!(interface(1, i64::MAX).time(u64::MAX).as_secs(), u64::MAX);
    assert_eq!(interface(resolution(127), 0).time(u64::MAX), Duration::ZERO);
    assert_eq!(interface(resolution(0xc0), 0).time(1 << 63), Duration::new(0, 500_000_000));
}

#[test]
fn record_beyond_the_usual_buffer_is_read() {
    let order = Order::Little;
    let secrets = order.block(10, &[&order.words(&[0x544c_534b, 2 << 20])[..], &vec![b'x'; 2 << 20]].concat());
    let file = [order.section(), order.interface(1, 0, &[]), secrets, order.enhanced(0, 0, 61, FRAME)];
    assert_eq!(read(file.concat()).unwrap(), [whole(Duration::ZERO)]);
}

#[test]
fn source_that_fails_is_told_with_its_cause() {
    let error = Capture::open(Path::new("/")).err().unwrap().to_string();
    assert!(error.contains("Is a directory"), "{error}");
}

fn captures() -> Vec<Vec<u8>> {
    let pcapng = |order: Order| {
        let parts = [
            order.section(),
            order.interface(1, 96, &[(2, b"eth0"), (9, &[9]), (14, &[0; 8])]),
            order.enhanced(0, 1, 61, FRAME),
            order.block(4, &[0, 1, 0, 8, 1, 2, 3, 4, b'a', 0, 0, 0, 0, 0, 0, 0]),
            order.block(5, &[0; 12]),
            order.block(3, &[&order.u32(61), FRAME].concat()),
            order.enhanced(0, 2, 61, FRAME),
        ];
        parts.concat()
    };
    let pcap = |order: Order| order.pcap(NANO, 1, &[(1, 2, 61, FRAME), (3, 4, 70, FRAME)]);
    vec![pcapng(Order::Little), pcapng(Order::Big), pcap(Order::Little), pcap(Order::Big)]
}

proptest! {
    /// Reading ends, without a panic, and gives no more than there is.
    #[test]
    fn mutated_captures_give_frames_or_an_error(
        mut file in prop::sample::select(captures()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        file.truncate(cut.index(file.len()) + 1);
        let size = file.len();
        let frames: Vec<_> = Capture::new(io::Cursor::new(file)).into_iter().flatten().flatten().collect();
        prop_assert!(frames.iter().map(|frame| frame.data.len()).sum::<usize>() <= size);
    }
}
