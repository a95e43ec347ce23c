//! The programs that several hooks have alike: shells, without logic.
//!
//! A filter on ports comes before anything else. Where the exit does not see the listener, which
//! is so by kretprobe, the entry forgets the frame of a port that is not wanted.

/// Declares the programs of a function `f(sk, skb)` that decides on a packet. `$open` is
/// given the hook, the listener and the packet; `$close` the hook, the packet (0 where the
/// program does not see it), what gives the returned value, and what gives the listener.
///
/// `$exit` and `$exit_kprobe` go on in the program that is in `$map`, which [`alike`] declares;
/// `$alone` does it all itself.
macro_rules! decides {
    ($open:ident $close:ident, $hook:ident $enter:ident $exit:ident $alone:ident $enter_kprobe:ident $exit_kprobe:ident, $map:ident) => {
        #[fentry]
        fn $enter(ctx: FEntryContext) -> i32 {
            let sk = Typed(ctx.arg(0));
            if filter::port(sk) {
                $open(hook::$hook, sk, ctx.arg(1));
            }
            0
        }

        #[fexit]
        fn $exit(ctx: FExitContext) -> i32 {
            if filter::port(Typed(ctx.arg(0))) {
                // SAFETY: nothing is left here that would have to be dropped.
                unsafe { $map.tail_call(&ctx, 0) };
            }
            0
        }

        #[fexit]
        fn $alone(ctx: FExitContext) -> i32 {
            let sk = Typed(ctx.arg(0));
            if filter::port(sk) {
                let returned = || memory::returned::<{ hook::$hook }>(&ctx);
                $close(Some(hook::$hook), ctx.arg(1), returned, |_| sk);
            }
            0
        }

        #[kprobe]
        fn $enter_kprobe(ctx: ProbeContext) -> u32 {
            if let (Some(sk), Some(skb)) = (ctx.arg(0), ctx.arg(1)) {
                let sk = Plain(sk);
                if filter::port(sk) {
                    $open(hook::$hook, sk, skb);
                } else {
                    frame::skip();
                }
            }
            0
        }

        #[kretprobe]
        fn $exit_kprobe(ctx: RetProbeContext) -> u32 {
            // SAFETY: nothing is left here that would have to be dropped.
            unsafe { $map.tail_call(&ctx, 0) };
            0
        }
    };
}
pub(super) use decides;

/// Declares the programs in which the exits of functions go on that are alike. What is returned is
/// where it is for `$hook`, one of them.
macro_rules! alike {
    ($close:ident, $hook:ident $exit:ident $exit_kprobe:ident) => {
        #[fexit]
        fn $exit(ctx: FExitContext) -> i32 {
            let sk = Typed(ctx.arg(0));
            let returned = || memory::returned::<{ hook::$hook }>(&ctx);
            $close(None, ctx.arg(1), returned, |_| sk);
            0
        }

        #[kretprobe]
        fn $exit_kprobe(ctx: RetProbeContext) -> u32 {
            $close(None, 0, || ctx.ret(), |frame| Plain(frame.sk));
            0
        }
    };
}
pub(super) use alike;

/// Declares the two programs of a nested hook that only notes what its function returned, which
/// is asked with an open frame alone, and where it returns something.
macro_rules! nested_exit {
    ($hook:ident $exit:ident $exit_kprobe:ident |$returned:ident| $what:expr) => {
        #[fexit]
        fn $exit(ctx: FExitContext) -> i32 {
            frame::note(|| {
                let $returned = || memory::returned::<{ hook::$hook }>(&ctx);
                $what
            });
            0
        }

        #[kretprobe]
        fn $exit_kprobe(ctx: RetProbeContext) -> u32 {
            let $returned = || -> u64 { ctx.ret() };
            frame::note(|| $what);
            0
        }
    };
}
pub(super) use nested_exit;
