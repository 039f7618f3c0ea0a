//! The form of a test that is asked of every pairing in every mode: both protocols of the front ends' door,
//! on a Unix socket and over TCP with mutual TLS.

/// Declares tests of pairings: each runs for the makers that are named, as
/// `<module>::<pairing>::<mode>::<name>`.
///
/// ```text
/// pairings! { dials [our_server OUR_SERVER, ours OURS] {
///     async fn questions_are_answered(makers, mode) { ... }
/// } }
/// ```
#[macro_export]
macro_rules! pairings {
    ($in:ident [$($pairing:ident $makers:ident),+] $bodies:tt) => {
        mod $in {
            use super::*;
            mod body {
                use super::*;
                $crate::pairings!(@bodies $bodies);
            }
            $( mod $pairing { $crate::pairings!(@modes $makers $bodies); } )+
        }
    };
    (@bodies { $( $(#[$meta:meta])* async fn $name:ident($makers:ident, $mode:ident) $body:block )* }) => {
        $( $(#[$meta])* pub(super) async fn $name($makers: Makers, $mode: Mode) $body )*
    };
    (@modes $makers:ident $bodies:tt) => {
        mod grpc_unix { $crate::pairings!(@tests $makers GrpcUnix $bodies); }
        mod grpc_tcp { $crate::pairings!(@tests $makers GrpcTcp $bodies); }
        mod connect_unix { $crate::pairings!(@tests $makers ConnectUnix $bodies); }
        mod connect_tcp { $crate::pairings!(@tests $makers ConnectTcp $bodies); }
    };
    (@tests $makers:ident $mode:ident
        { $( $(#[$meta:meta])* async fn $name:ident($a:ident, $b:ident) $body:block )* }) => {
        $(
        #[ignore = "needs Go"]
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let makers = $crate::konnectivity::pair::Makers::$makers;
            let mode = $crate::konnectivity::Mode::$mode;
            let body = Box::pin(super::super::body::$name(makers, mode));
            $crate::scenario::run(stringify!($name), body).await;
        } )*
    };
}
