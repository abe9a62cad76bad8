//! Packets through the loaded program without a wire: `BPF_PROG_TEST_RUN`.

use super::{Error, Program};
use aya::programs::{TestRun as _, TestRunOptions};
use std::ops::RangeInclusive;

/// Lengths of the frames that the kernel runs whole, in bytes: an Ethernet header at least, and at most what one page
/// holds beside the headroom (256 bytes) and the tailroom (320 bytes) of XDP. Of a longer one the program would see a
/// part.
pub const TEST_RUN_FRAME: RangeInclusive<usize> = 14..=4096 - 256 - 320;
/// More than any encapsulation adds.
const ROOM: usize = 256;

/// What an XDP program decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpAction {
    /// The program failed; the packet is discarded.
    Aborted,
    /// Discarded.
    Drop,
    /// To the kernel.
    Pass,
    /// Out of the interface it came in by.
    Transmit,
    /// Out of another interface.
    Redirect,
}

impl XdpAction {
    /// The kernel takes a value that it does not know for `XDP_ABORTED`.
    fn of(value: u32) -> Self {
        match value {
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            _ => Self::Aborted,
        }
    }

    /// The kernel's name of it, without the prefix.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Aborted => "ABORTED",
            Self::Drop => "DROP",
            Self::Pass => "PASS",
            Self::Transmit => "TX",
            Self::Redirect => "REDIRECT",
        }
    }

    /// Whether the packet leaves the host.
    #[must_use]
    pub const fn leaves(self) -> bool {
        matches!(self, Self::Transmit | Self::Redirect)
    }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the program decided.
    pub action: XdpAction,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

impl Program {
    /// Runs the program once on a frame, which seems to come in by the loopback device (interface 1). Maps and counters
    /// change as with a packet from the wire.
    ///
    /// # Errors
    /// The kernel refuses, as it does with a length outside of [`TEST_RUN_FRAME`].
    pub fn test_run(&mut self, frame: &[u8]) -> Result<Ran, Error> {
        let mut out = vec![0; frame.len() + ROOM];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = self.xdp()?.test_run(options).map_err(Error::new("run", "the XDP program"))?;
        out.truncate(usize::try_from(result.data_size_out).unwrap_or(usize::MAX));
        Ok(Ran { action: XdpAction::of(result.return_value), frame: out })
    }
}
