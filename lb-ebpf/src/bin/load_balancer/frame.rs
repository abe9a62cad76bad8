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

    /// Whether it was sent to a group of stations, or to all, or is no frame.
    #[inline(always)]
    pub(crate) fn is_to_many(self) -> bool {
        // SAFETY: checked in the same expression.
        !self.has(ETH_LEN) || unsafe { self.load::<u8>(0) } & 1 != 0
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

    /// Exchanges the `T`s at bytes `a` and `b`.
    ///
    /// # Safety
    /// As for [`Frame::load`], of both.
    #[inline(always)]
    pub(crate) unsafe fn exchange<T: Copy>(self, a: usize, b: usize) {
        // SAFETY: in bounds by the caller's word.
        unsafe {
            let (at_a, at_b) = (self.load::<T>(a), self.load::<T>(b));
            self.store(a, at_b);
            self.store(b, at_a);
        }
    }

    /// What comes after the first `len` bytes; `has` tells whether there is any.
    #[inline(always)]
    pub(crate) fn after(self, len: usize) -> Self {
        Self { start: self.start + len, end: self.end }
    }

    /// The EtherType as it lies in the frame; the caller has asked for an Ethernet header.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> u16 {
        // SAFETY: callers check for at least ETH_LEN bytes first.
        unsafe { self.load(12) }
    }

    /// Where the bytes from `at` on begin, for helpers that check the bound themselves.
    #[inline(always)]
    pub(crate) fn pointer<T>(self, at: usize) -> *mut T {
        (self.start + at) as *mut T
    }
}
