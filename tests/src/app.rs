// SPDX-License-Identifier: Apache-2.0
//! `culvert-testapp`, the program that runs in the tests' pods, and the reports that it prints.

pub mod call;
pub mod connect;
pub mod hold;
pub mod peer;
pub mod relay;
pub mod report;
pub mod requests;
pub mod serve;
pub mod stream;
pub mod turned;
