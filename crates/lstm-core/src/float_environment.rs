//! The floating-point settings of the current thread.

#![allow(unsafe_code, reason = "the settings are in a register of the processor, which only assembly reads and writes")]

/// Gives the current thread the default floating-point settings: results are rounded to nearest, and subnormal numbers
/// are kept. Restores the former settings when dropped.
///
/// Audio hosts and some other programs flush subnormal numbers to zero, by the flags FTZ and DAZ on x86 and FZ on Arm.
/// With these flags the results of this library would be others. Therefore these set the default settings while they
/// run: the methods of models, layers, streams, tapes and trainers that block, opening and saving of files,
/// initialization, quantization, the losses, clipping, optimizers and schedules. The threads of the CPU backend have them
/// at all times.
///
/// **Asynchronous methods do not**, nor do the primitive operations of backends, nor the modules `arithmetic`, `cell` and
/// `reference`. A program that changes the settings holds a `FloatEnvironment` while it calls these or polls a future.
///
/// Drop several of one thread in the reverse order of their creation, as variables of nested scopes are. Otherwise the
/// first that is dropped restores the former settings while the others exist.
///
/// The compiler takes the result of an operation on floats for a function of its operands alone. It may move an
/// operation to before the settings are set or after they are restored, unless the operands come from memory and the
/// result goes to memory, or to a function that is not inlined, such as [`black_box`](std::hint::black_box).
///
/// ```
/// let environment = lstm_core::FloatEnvironment::set_default();
/// assert_eq!(f32::MIN_POSITIVE / 2.0 * 2.0, f32::MIN_POSITIVE);
/// drop(environment); // the settings are what they were
/// ```
#[derive(Debug)]
#[must_use = "the former settings are restored when this is dropped"]
pub struct FloatEnvironment {
    /// The settings to restore, if they were changed.
    former: Option<Register>,
    /// The settings are those of one thread: a pointer makes the type neither `Send` nor `Sync`.
    _thread: std::marker::PhantomData<*const ()>,
}

impl FloatEnvironment {
    /// Sets the default settings.
    #[inline]
    pub fn set_default() -> Self {
        let register = read();
        let is_default = register & CONTROL_BITS == DEFAULT;
        if !is_default {
            write(DEFAULT);
        }
        FloatEnvironment { former: (!is_default).then_some(register), _thread: std::marker::PhantomData }
    }
}

impl Drop for FloatEnvironment {
    #[inline]
    fn drop(&mut self) {
        if let Some(register) = self.former {
            write(register);
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
use x86_64::{CONTROL_BITS, DEFAULT, Register, read, write};

/// The register MXCSR.
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86_64 {
    use std::arch::asm;

    pub(super) type Register = u32;
    /// All bits but the flags of exceptions that occurred.
    pub(super) const CONTROL_BITS: Register = 0xffc0;
    /// All exceptions are masked; rounding to nearest; no FTZ, no DAZ.
    pub(super) const DEFAULT: Register = 0x1f80;

    #[inline]
    pub(super) fn read() -> Register {
        let mut register: Register = 0;
        // SAFETY: `stmxcsr` writes 4 bytes to the address of `register`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) };
        register
    }

    #[inline]
    pub(super) fn write(register: Register) {
        // SAFETY: `ldmxcsr` reads 4 bytes from the address of `register`. The value is the default, or one that the
        // register had, so that no reserved bit is set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack, preserves_flags)) };
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
use aarch64::{CONTROL_BITS, DEFAULT, Register, read, write};

/// The register FPCR.
#[cfg(all(target_arch = "aarch64", not(miri)))]
mod aarch64 {
    use std::arch::asm;

    pub(super) type Register = u64;
    /// The flushing of subnormal numbers (FIZ, AH, FZ16, FZ), the rounding mode and default NaNs (DN).
    pub(super) const CONTROL_BITS: Register = 1 | 1 << 1 | 1 << 19 | 0b11 << 22 | 1 << 24 | 1 << 25;
    pub(super) const DEFAULT: Register = 0;

    #[inline]
    pub(super) fn read() -> Register {
        let register: Register;
        // SAFETY: reads a register that every program may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) register, options(nostack, preserves_flags)) };
        register
    }

    #[inline]
    pub(super) fn write(register: Register) {
        // SAFETY: writes a register that every program may write: 0, or a value that it had.
        unsafe { asm!("msr fpcr, {}", in(reg) register, options(nostack, preserves_flags)) };
    }
}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
use other::{CONTROL_BITS, DEFAULT, Register, read, write};

/// For targets whose floating-point settings are not changed: WebAssembly has none, Miri runs no inline assembly, and
/// this module does not know those of other processors.
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod other {
    pub(super) type Register = u32;
    pub(super) const CONTROL_BITS: Register = 0;
    pub(super) const DEFAULT: Register = 0;

    pub(super) fn read() -> Register {
        0
    }

    pub(super) fn write(_register: Register) {}
}

#[cfg(all(test, not(miri), any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[cfg(target_arch = "x86_64")]
    const FLUSH: Register = 0x9fc0;
    #[cfg(target_arch = "aarch64")]
    const FLUSH: Register = 1 << 24;

    fn half_of_smallest_normal() -> f32 {
        black_box(f32::MIN_POSITIVE) * black_box(0.5)
    }

    #[test]
    fn default_settings_keep_subnormals_and_the_former_ones_return() {
        let before = read();
        write(FLUSH);
        let flushed = half_of_smallest_normal();
        let kept = {
            let _environment = FloatEnvironment::set_default();
            let _nested = FloatEnvironment::set_default();
            half_of_smallest_normal()
        };
        let flushed_again = half_of_smallest_normal();
        write(before);
        assert_eq!([flushed, kept, flushed_again].map(f32::to_bits), [0, 0x0040_0000, 0]);
    }
}
