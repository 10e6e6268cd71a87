//! Published vectors, in hexadecimal.

/// Return ChaCha20 keys, nonces, block counters, and the key stream or its beginning.
pub fn chacha20() -> [(String, String, u32, String); 9] {
    let zeros = "00".repeat(32);
    let counting: String = (0..32).map(|n| format!("{n:02x}")).collect();
    let one = |at: usize, value: &str| format!("{}{value}{}", "00".repeat(at), "00".repeat(31 - at));
    let none = "00".repeat(12);
    // Section 2.3.2, then appendix A.1, then the one-time keys of 2.6.2 and A.4.
    let cases: [(&str, &str, u32, &str); 9] = [
        (
            &counting,
            "000000090000004a00000000",
            1,
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4ed2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
        ),
        (
            &zeros,
            &none,
            0,
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        ),
        (
            &zeros,
            &none,
            1,
            "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
        ),
        (
            &one(31, "01"),
            &none,
            1,
            "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
        ),
        (
            &one(1, "ff"),
            &none,
            2,
            "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
        ),
        (
            &zeros,
            "000000000000000000000002",
            0,
            "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c78a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
        ),
        (
            "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
            "000000000001020304050607",
            0,
            "8ad5a08b905f81cc815040274ab29471a833b637e3fd0da508dbb8e2fdd1a646",
        ),
        (
            &one(31, "01"),
            "000000000000000000000002",
            0,
            "ecfa254f845f647473d3cb140da9e87606cb33066c447b87bc2666dde3fbb739",
        ),
        (
            "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0",
            "000000000000000000000002",
            0,
            "965e3bc6f9ec7ed9560808f4d229f94b137ff275ca9b3fcbdd59deaad23310ae",
        ),
    ];
    cases.map(|(key, nonce, counter, stream)| (key.to_owned(), nonce.to_owned(), counter, stream.to_owned()))
}

/// Return Poly1305 keys (without zeros at their end), messages and tags.
pub fn poly1305() -> [(String, String, String); 8] {
    let ff = "ff".repeat(16);
    let r = |r: &str| format!("{r}{}", "00".repeat(16 - r.len() / 2 + 16));
    // The cases of appendix A.3 with whole blocks (an AEAD has no others): 1 and 7 to 11, which
    // carry at every edge.
    [
        ("00".repeat(32), "00".repeat(64), "00".repeat(16)),
        (r("02"), ff.clone(), format!("03{}", "00".repeat(15))),
        (format!("02{}{ff}", "00".repeat(15)), format!("02{}", "00".repeat(15)), format!("03{}", "00".repeat(15))),
        (r("01"), format!("{ff}f0{}11{}", "ff".repeat(15), "00".repeat(15)), format!("05{}", "00".repeat(15))),
        (r("01"), format!("{ff}fb{}{}", "fe".repeat(15), "01".repeat(16)), "00".repeat(16)),
        (r("02"), format!("fd{}", "ff".repeat(15)), format!("fa{}", "ff".repeat(15))),
        (
            r("0100000000000000 04"),
            "e33594d7505e43b90000000000000000 3394d7505e4379cd0100000000000000\
             00000000000000000000000000000000 01000000000000000000000000000000"
                .into(),
            "14000000000000005500000000000000".into(),
        ),
        (
            r("0100000000000000 04"),
            "e33594d7505e43b90000000000000000 3394d7505e4379cd0100000000000000\
             00000000000000000000000000000000"
                .into(),
            "13".to_owned() + &"00".repeat(15),
        ),
    ]
}
