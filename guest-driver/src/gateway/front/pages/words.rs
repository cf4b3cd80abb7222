//! The words of the pages, in English and Chinese.

/// A language of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// English.
    English,
    /// Simplified Chinese.
    Chinese,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::English, Self::Chinese];

    /// As the parameter `lang` names it.
    pub fn code(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh",
        }
    }

    /// As HTML names it.
    pub fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh-CN",
        }
    }

    /// The language with a code.
    pub fn of_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|language| language.code() == code)
    }

    /// The one that an `Accept-Language` header likes best; English when it names neither.
    pub fn preferred(header: &str) -> Self {
        let mut best = (0.0, Self::English);
        for item in header.split(',') {
            let (tag, weight) = item.split_once(';').unwrap_or((item, "q=1"));
            let weight = weight.trim().strip_prefix("q=").and_then(|text| text.parse::<f32>().ok());
            let primary = tag.trim().split('-').next().unwrap_or_default().to_ascii_lowercase();
            if let (Some(language), Some(weight)) = (Self::of_code(&primary), weight)
                && weight > best.0
            {
                best = (weight, language);
            }
        }
        best.1
    }

    /// Its words.
    pub fn words(self) -> &'static Words {
        match self {
            Self::English => &ENGLISH,
            Self::Chinese => &CHINESE,
        }
    }
}

/// Everything that a page says. HTML-safe as it stands.
#[derive(Debug)]
pub struct Words {
    pub name: &'static str,
    pub brand: &'static str,
    pub skip: &'static str,
    pub languages: &'static str,
    pub promise: &'static str,
    pub find: &'static str,
    pub lead: &'static str,
    pub number: &'static str,
    pub show: &'static str,
    pub day: &'static str,
    pub list: &'static str,
    pub receipts_of: &'static str,
    pub none_that_day: &'static str,
    pub list_damaged: &'static str,
    pub more: &'static str,
    pub receipt: &'static str,
    pub verified: &'static str,
    pub verified_how: &'static str,
    pub image_of: &'static str,
    pub no_picture: &'static str,
    pub open: &'static str,
    pub download: &'static str,
    pub print: &'static str,
    pub path: &'static str,
    pub hash: &'static str,
    pub sequence: &'static str,
    pub version: &'static str,
    pub stored_at: &'static str,
    pub size: &'static str,
    pub bytes: &'static str,
    pub kind: &'static str,
    pub details: &'static str,
    not_found: (&'static str, &'static str),
    pending: (&'static str, &'static str),
    corrupt: (&'static str, &'static str),
    issuer_down: (&'static str, &'static str),
    bad: (&'static str, &'static str),
    other: (&'static str, &'static str),
}

impl Words {
    /// Title and text of a fault.
    pub fn fault(&self, code: &str) -> (&'static str, &'static str) {
        match code {
            "not_found" => self.not_found,
            "pending" => self.pending,
            "corrupt" => self.corrupt,
            "issuer_down" | "issuer_failed" | "other_store" => self.issuer_down,
            "bad_request" | "bad_path" => self.bad,
            _ => self.other,
        }
    }
}

const ENGLISH: Words = Words {
    name: "English",
    brand: "Electronic receipts",
    skip: "To the content",
    languages: "Language",
    promise: "Every image is checked against the hash of the issued receipt before it is shown.",
    find: "Find a receipt",
    lead: "Enter the receipt number, or list the receipts of a day.",
    number: "Receipt number",
    show: "Show",
    day: "Day",
    list: "List",
    receipts_of: "Receipts of",
    none_that_day: "There are no receipts of this day.",
    list_damaged: "Part of the list cannot be read: receipts may be missing from it. Please tell the operator.",
    more: "Earlier receipts",
    receipt: "Electronic receipt",
    verified: "Verified",
    verified_how: "This image was read from the receipt disk just now. Its content matches the hash that was recorded when it was issued.",
    image_of: "Image of receipt",
    no_picture: "This receipt is no picture that can be shown here.",
    open: "Open it",
    download: "Download",
    print: "Print",
    path: "Path",
    hash: "Hash (BLAKE3)",
    sequence: "Sequence",
    version: "Version",
    stored_at: "Stored",
    size: "Size",
    bytes: "bytes",
    kind: "Type",
    details: "Details",
    not_found: (
        "No such receipt",
        "There is no receipt under this number. Please check it; capital and small letters differ.",
    ),
    pending: (
        "Just a moment",
        "This receipt is being issued right now. The page looks again by itself every two seconds.",
    ),
    corrupt: (
        "This receipt cannot be shown",
        "What is stored does not match its hash, so it is not shown. Please tell the operator; nothing else is affected.",
    ),
    issuer_down: (
        "Search by number is not available",
        "The receipt system does not answer at the moment. Receipts can still be found by day.",
    ),
    bad: ("This is not a receipt number", "Please check what was entered."),
    other: ("This did not work", "Please try again in a moment."),
};

const CHINESE: Words = Words {
    name: "中文",
    brand: "电子回单",
    skip: "跳到正文",
    languages: "语言",
    promise: "每张回单图像在显示之前，均与签发时记录的哈希值核对。",
    find: "查询回单",
    lead: "请输入回单编号，或按日期列出回单。",
    number: "回单编号",
    show: "查询",
    day: "日期",
    list: "列出",
    receipts_of: "回单列表",
    none_that_day: "该日期没有回单。",
    list_damaged: "部分列表无法读取，可能缺少回单。请联系管理员。",
    more: "更早的回单",
    receipt: "电子回单",
    verified: "已验证",
    verified_how: "本图像刚刚从回单磁盘读取，其内容与签发时记录的哈希值一致。",
    image_of: "回单图像",
    no_picture: "该回单不是可以在此显示的图片。",
    open: "打开",
    download: "下载",
    print: "打印",
    path: "路径",
    hash: "哈希值 (BLAKE3)",
    sequence: "序号",
    version: "版本",
    stored_at: "存储时间",
    size: "大小",
    bytes: "字节",
    kind: "类型",
    details: "详细信息",
    not_found: ("未找到回单", "没有此编号的回单。请核对编号，注意区分大小写。"),
    pending: ("请稍候", "该回单正在签发。本页面每两秒自动刷新。"),
    corrupt: ("无法显示该回单", "存储的内容与其哈希值不符，因此不予显示。请联系管理员；其他回单不受影响。"),
    issuer_down: ("暂时无法按编号查询", "回单系统目前没有响应。仍可按日期查询回单。"),
    bad: ("回单编号无效", "请核对输入内容。"),
    other: ("操作未成功", "请稍后再试。"),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_language_wins() {
        for (header, language) in [
            ("", Language::English),
            ("zh-CN,zh;q=0.9,en;q=0.8", Language::Chinese),
            ("en-US,en;q=0.9,zh;q=0.8", Language::English),
            ("fr, zh;q=0.2", Language::Chinese),
            ("ZH-hant", Language::Chinese),
            ("zh;q=0, en;q=0.1", Language::English),
            ("zh;q=x", Language::English),
            (";;,,", Language::English),
        ] {
            assert_eq!(Language::preferred(header), language, "{header}");
        }
    }
}
