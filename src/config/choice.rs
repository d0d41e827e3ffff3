//! The words of the config of which there are a few to choose from.

/// Declares an enum together with the words of the file that stand for its variants.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word that stands for it in the file.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl Choice for $name {
            const ALL: &'static [Self] = Self::ALL;

            fn word(self) -> &'static str {
                self.as_str()
            }
        }
    };
}

/// One of a few words.
pub(super) trait Choice: Copy + 'static {
    /// Every value.
    const ALL: &'static [Self];

    /// The word of the file.
    fn word(self) -> &'static str;
}

choice! {
    /// Which requests need a token.
    Require {
        /// Every request but the safe methods.
        Writes = "writes",
        /// Every request.
        All = "all",
        /// None: a plain proxy route.
        Never = "never",
    }
}

choice! {
    /// Whether refusals are carried out.
    Mode {
        /// They are.
        Enforce = "enforce",
        /// They are only told.
        Observe = "observe",
    }
}

choice! {
    /// When a key rule applies.
    When {
        /// To every request: a part that is missing refuses it.
        Always = "always",
        /// Only where every part of it is present.
        Present = "present",
    }
}

choice! {
    /// What a request does to a key.
    Access {
        /// It writes: its token raises the mark.
        Write = "write",
        /// It reads: older writes drain, and nothing is raised.
        Read = "read",
    }
}

choice! {
    /// Whose tokens may raise a mark.
    Trust {
        /// Everybody's.
        Any = "any",
        /// Those that this gateway's lock service has issued.
        Issued = "issued",
        /// Those that carry the signature of a known key.
        Signed = "signed",
    }
}

choice! {
    /// What is done with the holder.
    Holder {
        /// Nothing.
        Ignore = "ignore",
        /// The mark is bound to it.
        Bind = "bind",
    }
}

choice! {
    /// Where the holder's name comes from.
    HolderFrom {
        /// The header `Fencing-Holder`.
        Header = "header",
        /// The client's certificate.
        ClientCert = "client_cert",
    }
}

choice! {
    /// What a listener asks of clients.
    ClientAuth {
        /// Nothing.
        None = "none",
        /// A certificate, if they have one.
        Optional = "optional",
        /// A certificate.
        Required = "required",
    }
}

choice! {
    /// Whether an advance may begin a new epoch.
    NewEpochs {
        /// It may.
        Allow = "allow",
        /// It is refused.
        Refuse = "refuse",
    }
}

choice! {
    /// How strictly paths are read.
    PathRules {
        /// What servers read in different ways is refused.
        Strict = "strict",
        /// What object stores take into their keys is kept.
        Opaque = "opaque",
    }
}

choice! {
    /// Whether keys that differ in case only are the same.
    Case {
        /// They differ.
        Sensitive = "sensitive",
        /// They are the same.
        Insensitive = "insensitive",
    }
}

choice! {
    /// How a request's body is passed on.
    Body {
        /// As it comes.
        Stream = "stream",
        /// Received whole first.
        Spool = "spool",
    }
}

choice! {
    /// What happens when a drain takes too long.
    OnTimeout {
        /// The advance is refused; the older write runs on.
        Refuse = "refuse",
        /// The older write is cut.
        Cut = "cut",
    }
}

choice! {
    /// What becomes of an older write whose body is still on its way.
    Uploads {
        /// It is cut at once.
        Cut = "cut",
        /// It is waited for.
        Wait = "wait",
    }
}

choice! {
    /// How a line of the log looks.
    LogFormat {
        /// Text on a terminal, JSON otherwise.
        Auto = "auto",
        /// Text.
        Text = "text",
        /// JSON.
        Json = "json",
    }
}

choice! {
    /// A level of the log.
    Level {
        /// What needs an operator.
        Error = "error",
        /// What an operator should know, refusals among it.
        Warn = "warn",
        /// What happens.
        Info = "info",
        /// What helps to find a mistake.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}
