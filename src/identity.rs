//! Keys and what they sign: who a person or a machine is.
//!
//! Every identity is a BIP-340 key (Nostr). [`Keys`] lives in a file of its own
//! that nobody else can read; [`LoginEvent`] proves possession of a key to a
//! control plane (`control::session` sends it, `stack::auth` checks it, and so
//! does `supabase/functions/auth`); [`Receipt`] is what a node signs about an
//! attempt that it completed, and what anybody can check offline.
//!
//! Nothing here talks to a network, and a secret leaves [`Keys`] only into its
//! own file.

mod event;
mod keys;
mod login_event;
mod public_key;
mod receipt;

pub use event::EventFault;
pub use keys::{KeyFileError, Keys};
#[cfg(feature = "proxy")]
pub(crate) use keys::{keep_private, open_private};
pub use login_event::{
    LOGIN_EVENT_KIND, LOGIN_WINDOW_SECS, LoginEvent, LoginEventError, VerifiedLogin,
};
pub use public_key::{NotAPublicKey, PublicKey};
pub use receipt::{RECEIPT_EVENT_KIND, Receipt, ReceiptError, VerifiedReceipt};

/// Returns the SHA-256 of some bytes, as lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}
