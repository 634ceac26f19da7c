//! Breakpoints and hooks as the machine keeps them: who sets one retires the code that does not know it,
//! and has every vCPU look anew.

use super::core::Core;
use super::hook_context::{HookContext, MemoryAccess};
use super::hooks::{HookError, HookId, Removed, Span};
use super::trace::Traced;
use crate::guest::GuestAddress;
use crate::memory::MapError;
use crate::translate::TraceOf;

impl Core {
    /// Retires the code of addresses whose breakpoints or hooks have changed, of which each vCPU is to
    /// know.
    fn rules_changed(&mut self, span: Span) {
        self.retire_between(span.first, span.last);
        self.gates.invalidated();
    }

    /// Sets a breakpoint.
    pub(super) fn set_breakpoint(&mut self, address: GuestAddress) {
        if self.hooks.add_breakpoint(address) {
            self.rules_changed(Span { first: address, last: address });
        }
    }

    /// Takes a breakpoint away; whether there was one.
    pub(super) fn clear_breakpoint(&mut self, address: GuestAddress) -> bool {
        let cleared = self.hooks.remove_breakpoint(address);
        if cleared {
            self.rules_changed(Span { first: address, last: address });
        }
        cleared
    }

    /// Calls `call` before each instruction of a span.
    pub(super) fn hook_code(
        &mut self,
        span: Span,
        call: impl FnMut(&mut HookContext<'_>) + Send + 'static,
    ) -> HookId {
        let id = self.hooks.add_code(span, call);
        self.rules_changed(span);
        id
    }

    /// Calls `call` where control arrives in a span.
    pub(super) fn hook_blocks(
        &mut self,
        span: Span,
        call: impl FnMut(&mut HookContext<'_>) + Send + 'static,
    ) -> HookId {
        let id = self.hooks.add_block(span, call);
        self.rules_changed(span);
        id
    }

    /// Gives `call` a trace of a span.
    pub(super) fn trace(
        &mut self,
        traced: (TraceOf, Span),
        call: impl FnMut(Traced<'_>) + Send + 'static,
    ) -> Result<HookId, HookError> {
        let id = self.hooks.add_trace(traced, call).ok_or(HookError::Traced)?;
        self.rules_changed(traced.1);
        Ok(id)
    }

    /// Calls `call` before each access to a span.
    pub(super) fn hook_memory(
        &mut self,
        span: Span,
        call: impl FnMut(&MemoryAccess<'_>) + Send + 'static,
    ) -> Result<HookId, HookError> {
        let id = self.hooks.add_memory(span, call);
        match self.trap() {
            Ok(()) => {
                // Blocks there may compare their source, which they cannot any more.
                self.rules_changed(span);
                Ok(id)
            }
            Err(error) => {
                self.hooks.remove(id);
                Err(error.into())
            }
        }
    }

    /// Takes a hook out.
    pub(super) fn unhook(&mut self, id: HookId) -> Option<Removed> {
        let (span, removed) = self.hooks.remove(id)?;
        if !removed.is_memory() {
            self.rules_changed(span);
            return Some(removed);
        }
        // No vCPU is to keep the closure.
        self.gates.invalidated();
        if let Err(error) = self.trap() {
            // Accesses still come to the run loop, which finds nobody to call.
            tracing::debug!(%error, "pages stay trapped");
        }
        Some(removed)
    }

    fn trap(&mut self) -> Result<(), MapError> {
        self.memory.set_traps(&self.hooks.trapped_below(self.memory.window_end()))
    }
}
