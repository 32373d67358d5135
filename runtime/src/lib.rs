// SPDX-License-Identifier: Apache-2.0
//! What every Culvert process does alike: the log, the admin server with metrics and readiness,
//! signals, and messages with file descriptors over a Unix SEQPACKET socket.

pub mod admin;
pub mod config;
pub mod log;
pub mod readiness;
pub mod seqpacket;
pub mod shutdown;
