//! A received Ethernet frame and bounded access to it.

use aya_ebpf::programs::XdpContext;
use lb_ebpf::net::ETH_LEN;

/// The bytes from `start` to `end`. Pointers die with every change of the packet's head.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn of(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// Length in bytes.
    #[inline(always)]
    pub(crate) fn len(self) -> u64 {
        (self.end - self.start) as u64
    }

    /// Whether the first `len` bytes are there. Every `load` and `store` must be preceded by it.
    #[inline(always)]
    pub(crate) fn has(self, len: usize) -> bool {
        self.start + len <= self.end
    }

    /// Reads a `T` at byte `at`.
    ///
    /// # Safety
    /// `has(at + size_of::<T>())` was true for this frame. The verifier proves it again.
    #[inline(always)]
    pub(crate) unsafe fn load<T: Copy>(self, at: usize) -> T {
        // SAFETY: in bounds by the caller's word; any alignment.
        unsafe { ((self.start + at) as *const T).read_unaligned() }
    }

    /// Writes a `T` at byte `at`.
    ///
    /// # Safety
    /// As for [`Frame::load`].
    #[inline(always)]
    pub(crate) unsafe fn store<T: Copy>(self, at: usize, value: T) {
        // SAFETY: in bounds by the caller's word; any alignment.
        unsafe { ((self.start + at) as *mut T).write_unaligned(value) }
    }

    /// The EtherType as it lies in the frame; the caller has asked for an Ethernet header.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> u16 {
        // SAFETY: callers check for ETH_LEN + IPV4_LEN bytes first.
        unsafe { self.load(12) }
    }

    /// The IPv4 destination as it lies in the frame; the caller has asked for an IPv4 header.
    #[inline(always)]
    pub(crate) fn destination(self) -> u32 {
        // SAFETY: callers check for ETH_LEN + IPV4_LEN bytes first.
        unsafe { self.load(ETH_LEN + 16) }
    }
}
