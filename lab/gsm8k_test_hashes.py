"""gsm8k_test_hashes.py owns the marks by which training recognises GSM8K's 1,319 test questions, and refuses them.

    >>> gsm8k_test_hashes.is_test_question("Janet's ducks lay 16 eggs per day. She eats three ...")

48-bit hashes of the questions of the test.jsonl of openai/grade-school-math, not their text: enough to tell that a file
holds one of them, whatever its name, format, order, case, punctuation and spacing. Another question is taken for one of
them with a chance of 5e-12. Rewordings pass: decontaminate.py looks for shared passages. Callers: sft.py.
"""

import base64
import functools
import hashlib
import re

TEST_FILE_SHA256 = "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"  # of the published test.jsonl
N_QUESTIONS = 1319
HASH_BYTES = 6


def question_hash(text: str) -> bytes:
    """6 bytes that name a question by its ASCII letters and digits, in lower case."""
    return hashlib.blake2b(re.sub(r"[^a-z0-9]", "", text.lower()).encode(), digest_size=HASH_BYTES).digest()


@functools.cache
def _hashes() -> frozenset[bytes]:
    data = base64.b85decode("".join(_ENCODED.split()))
    return frozenset(data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES))


def is_test_question(text: str) -> bool:
    """Whether a text is one of GSM8K's test questions."""
    return question_hash(text) in _hashes()


# the hashes in ascending order, base85
_ENCODED = """
01Q8&@WcQ&|8={90C@Ykkoy3a7)nEe0M3yWcy0jsV{fv%0S=-qXYm0}aaFGo0fohjYJ>rauK7mZ0n1U-Lc9U-l*Xa|0wNnPSxW*l^wn5E0)p{m1Zo1Rm
EkL=0>EocxjX|qJ`?&z13RWiMkWJ^JJ*HN1G5nQJkkTb<C-h71X3g^qA&!K|F)u~1v(w`^GF3z=&y$i1)6DLZ&3ybYRCcq1{(GWl=22X#C3s423Cb_im
nE8MY)I!27wYb?Y#zyBD^2f2AuQ#!srH|CWdj)2FKQ$CM5?@o+9{O2X;g5*;5CBT`Z8!2ZtTb9p49^ei|K62e~}8cAp2s7FTH=2q661Q85Td+_7fs2yq
zUk9Y{QXRq~o2+RH8HM|JnDo7Bi2<tii6cq^%*7aLd2^dgQnBfUVuTVEY35FnRJ)sHBUdvo(3D2_f`e6z5s<eBl3MLyr2ImU0IVVAr3h;bd+Y$={5la5
o3oha$a?1-)UiMsb3uXluF=GpOl*06G3y5m7u#O9>()-=|3-b7PyWtETf{Gp`3?Z?)$3P5?$VVkK45+Ov{Cf<k;-wwo49in8aA6GE7h(;|4C&<@qyr4@
e*(K$4Ve0(6detq6g~g~4Y7<&G^GvQXnFbs4c;qNQDF`YMF%&44ll^V<&6%ev9FQ#4+ybSQ+E#=0+;gC4}x=aTcZz?5S$RP53T68xUUbqD$pka5AqtE&
QK5d0bmhH5EAs)r(O^o%_*+>5Rs8Xkh~DF&Yv?A5W{Ec6|E4&KinVc5g^a(m_QLkWon1P5w(y-L{t&PAx&N>5(1C?7_AZsXnUcC5-gx!eAyDMp=ZHh64
K-Z-BlAjG>IzW6F(+t&@>Z4JpjTH6I#N93LF#oq78xi6auS34rde${3UI96g9{s{Erkkm6KGd6i3E|namVu?}la76(ghUV_X$5Rz)m`6*iKnCM6ZSE01
+T6}-?BS!Nam)04%A79icO%<L9~e29MI7K|L0)>9VR>b1XT7TpSqT|*Y#jh!LA7Z~w4T+J6jy-t3h7f7U;QH>X<Z+{TW7ucW)^mG^V^mrnD7xe{;<J1@
Rvq$hQ7>9H1w=fvHASKP)80BwVxCR+P*a-Q18Dbr&txXwydFN7f8IZhHDg+t1usTrY8ShZ`uOu2C%<~RT8e)e_TEiNOK6iqy8w@mRI))phxj6fD8?MHK
f+-u@ZE~i~8}A|41VS7L#hRBE94l9sI`|wc*q4j69890rb>SRovH_cT9F_t{9%~$)PYi&i9R;|>1aut+-H&E39V{B6&ZZq#<ox^m9dFr_X+j<RSG0MN9
sz_m<@O$E785Tp9-hChTi_m{@0TYE9}icv`+y%5K*<Fj9~GIEu$~_>4Re1+ACWcY4FDhX-2qSDAVKS0nZ+QsM59P%Al)Wy=TadU1+zR^Ayrx4T!<mPv~
z}AA^pkgK))gej`z|}B0_Bn#d;!l#m-(mBHMmr4BjI05+k+jBYEB3{3#=<!mjw`BlKb$NMj^(v-wv*B!B`I1E3^?lEp~0B*Hnvzbz#V{bxvNC10#*qtG
RidMt0kC7S0)JtrlsnsiZoCA!W(tTiSRR(QFYCKswrV)iB{W)N@BCO06v$_^%<C5^y`Ci2{(m?9?&b0GakCn(1c1{EiKXA_@fCyc5|SE47QdZ!BvC<%>
?Q(q_yB@`NtC=PrtP+BN|eH1I$DCal_w?8Qc3)BP!DF(07jwLA`u7h+mDL~h|i%=<6j*n#LDWddZ??)-jt+?U!Db+$yU@0mH*RQUgDl*4ze<UhJr^N(F
Dn^;78nP-&W-W$LDo~E!a)&C^is-DBD;f=l%<L=6J8<&gE9Ml>PJt{Gts*59EGu7*pa?8h#QQWVEQCvtCM+zGrk?8hEWW*MT>&kY!mIw*EwF%?!s0E;4
O;oNE$SrpdulEksQP#bE+Sd;jxH`tFW~(DE{7Ytxuh=bcE&=NF7MnnweBwRGWaL3F7ix|JG3tw@cyi)FC1<IHy<xNK5O)XFJ+}#F!wMExz_0pFdSsSyi
_nq9|<|rFm|hSEp0H2BC}6{Frg}ND4sCHs1a}mFvUimy+$zIxmcyvF!L)y<d-p)vnvu6G0Iirpp-HCI%jlLG8_Vvy3aEh&EHm}Gce3pbjdS0jK<lWGt?
TsKYTO%vH(vgGy;?z#7H!j8M$!SG?x>};EXiOl{Y^9H2AT?Nsu)NNrb<-H9@XDlx;P%zaS~qHU{wIOdmEmN@%mjHl1ev4x=`#kB7d$Hq!$9<a##n2+gO
1HuJ4C<YG4+!|uZyH!!P8iK;g<mz9bjH{%s6LRdI3@fhI=I84kdOaM4zcNs?#IEE8y#;iD*vY)u;II{NpfT}p*<SGt1IPO9Qp+h+XerN6LIS&>Jwe>k0
(!#SSIVBG*HAFc%4o1OSIYcA1B_}y!QS25OIcCIEo&h<Dy2S55InZXg5!pHiHV3JcIwHiUf^#}jGG4YxI-DB|&v-hpN0sLNI=pyONu4_1QGeG3I`<?yq
V78ROl930I}r`!$z3}X<x2NDJ0%|W^iMmh(%32rJIfvRj{Q5)Y<DJcJKwM)h#Ncndkl&HJPZ7!;kP_Jl^<HRJWUo0k4HRqi|h;7JkatAD8W4TE{)4@Jt
Hb;BfmW)bM1=gJvyiJ;3z$Wc@pW6J^4e#X@fonUfx{6J{|1VcN{(>`FTlgK3Ce;d|p3?it>)kKcw%5b+13PH!@`vKehl!hB`n4MH%GIKm}QY@+v?UM}s
C1Kwr`Dn*=~&grwvNK!wK&*ZM$=r;&FvK%i*rsn|gD3mCCgK@m1&%sN56c9^jyLLV>USl&WU$eeoTLSv}zIov{m`um)pLhU(y0vtm7|D>TFLw$rw+)G1
-4p208LzGa*y5U3nP?~9RL=p`*lt4sL8Y!q?M3o`7(CI|phg=q|MBjR=nZQLf2UlspMOCp^anwbN4F2*RMt$YjyL3jgSnpj=M$m0ciY-R&JmkYGM*7N1
RsBZ&@vCh5M~R2~g91m~##OvjN9>dtB#KBorpu1RNQZTLg+@r3xKCjoNceE^?v6<+uO`+aNl%8g`ou|xRn|n0Nw~8}hI>ibib{JgN!gr!$j(YwRx%=rN
_9zE71~O$T#{8QO4^$a-X}`-9dOYGO8a?_{{Bk^&|g1`OMU0GT)RuCQ3K_9OW+;g%EwFnEjW2(OaKBh8U{=fZ2bvBOd}s2hDA(;1nF_KOrTNzW#>%5?(
K_*OwUnE3I|O@z5I<HO_d;Rr>RZMVCwLuP5qKl!KqFD=Ii4HP9G_{?Bh;fzFQ1|PLe3ns(ntPpMyxIPNO9m{e(`omxYJ=PRoXeJ|a%lz9P0VPXHG7#(h
t1ss>kvPu~$U$a7EkqIlb|PyLaVbZSr!=hMvkP;SFa!xm6^#Asb<P<_i__<T^(v<ytXQ4Cqz{SQ$i1M~CRQ8_c^Gk{S=X|pGSQGsKZEl^RxC@eD}QTFK
=B4AP!w~H5AQZFOh?pjh+JjzWWQh|f|BV$sDYGQ#9QkOeGbbC`9F>A3kQz2O9b!bynCf0glR0?FlJ>papdT+2mRFu9_yR%fX2wh-pRI=M^Cwo-tJn!AT
RRC|>ZlzTwpn)Y&RbpMhkfK$I@`Tt3Rj^#wg*H{U+OXJDRlO1{Ww2G;2d<d~RrL&b%Rg2uILV!=R#p1!*e+Iy7N)&VR+M!S$HG>_bWtlTR`fyyC16(ip
y(Q9R~E3UIICA8l@EzbS0@p49Aj5HTP!I}S74~G;J;UWcFJ*5SPjqu<)2tc)lIt_Sjk6i*?d_lJj4E_Sw5^wI;>ev7orf5S%6QBH)&ar*ov+LS;WfD5X
f2q<X45AT08VjD{xyPS*x$UTU%bqV0K%3)B~-ZTa~zdEOT4hJUhhvTlDx;KY3hG(CmS8Tx6fV>c3oyuMnd2T$(nS+Jap1XGGz3T{szdl+#^yCB8pjUL+
f(hp1kkNKrjcUd;7G7~Ee2RsB0XUppD1xwKzN2DpoPUrpN=;Gtj#qQifiV4e`BY`tL%vU84VVGdVVQI26T8#tM=VK?R}R6$`{&={weVOsvMf&gKJxGsY
7VX<iGN`hg_{Ail^Vd&jdmKkCJN~Gm{V)yZh3+7_|M&-2dV=ba<A@O5V`N!APW9NX5(o$pk2)#kzWT(i>dFEuq-a9ifWYCIpP<3SOk}aCfWb!ybfmdZU
t}eg{WkL=vR;*=Q@{tudWoH0*E_P*n%$GbcWvn+Te1m1n9a6QSW!f6_D(hwOi)FmcW%neWTRdh<Gd3C?W?eo<)(vKZ!MEtzW~wJP!~SN=_QDNlX6&ir7
3pV>Uog{tXOU1<?p|k^8Up%RXTgutzT{`pH6i=^Xahil+=6Iw0-`AuXoTY|fL3V8HxqVGXx5tk@%d=t1q`w|XzZRIp0;Tkk$E3(X*Kds_vvYnS2E^5Y3
~V&K@4gL-WtBFYA-ZkRt0J{%`t`pYG_U)yijU&OmKa8YN2KWnJH@02w=i^YXbNLMmTFw4bEHbYg&As?oDgil5ut4Y&%FU{5otqyGX<fY(q%{E+1@e;Sc
)5Z0jgyo_B31hG>PzZA&G0HJoi@7d_1tZEH%IsugXF-nESAZJc0vS_N(djI$1+ZV$XyG6`-Hp(uS}Za0}X^44y96YD%gZpvJpkDYH3&_G{CZ*dQU2bOP
!o(q!7Z;`lx#h7pislJGBa7-{i!8mY=fKG!yal+f)CC+ifgv?$^as`T|Glg;qVvIn5ava|2yr^<5-*qFaa&@HJRjhKTgW4s@a@ha{1+a4I?!kqva|q-a
WR!CvwF&*zb6@n+cfxaz#PvU+bMX<}QW11C6~SJNbd4xsGmmtlVYcGZbi#YYHzah}U{s4vbp5cnmfLj^czsA@btq<ajp}uPpKdzXb)ywu<n48?6`fPPb
;K3|6)1JZa@^9gb@D-zgV1&}^CNL}c44`REf04ro2rgacQh0w6&H6w6<X)4caFuI%6@nEQQEz%cnP(I^r3h?fzj<TctEW&9)oyUd72$FcxrP5A|iOn=a
7gKc?O4zJ{Wm23bkIEc~WiXI`Mgi^3`Qad6zrY<g$6DX%~W%dI2+mqZoQS(zmATdba$Mn|pfH@l3}0df@Xg;$(X3LB>mBdr(A7!wq|UkWLlhdy9R%#0G
o1h_@;=d*+X5uz!4Vqym5#eKcGW*e88EtEzBHeM{--`2l^+b$}+#ecuH61*CovYHheOeik=zcXxiNlvTq{eyfrq6F`2wIq2Zoe+W@I0r`I$fAx?ne;>7
`I#qvW@?(Jdf12_0(N}-LgJqx*f8ykNYCwPN8O&WnfK96MK0<(W3k})~fTU+R<NkpBtWS<yfe~%Ur?P<@VM_klf!rzfFB^h)NC97xf{tw}{)&RLmmROm
g4Z7paIu3Q$b{u`gF8gm7JY+TV-4@}gTT0DdDMf~$DH|#gc$^HkROCCCEHI@gj1~xU!{bcD@z^egyjbJ<lKd0pki;3g>GEOgxH07y^+Jyg_s~)sZxdP@
ys-vh7~E+3N?nNLDEr6hQcYI_l1VTR!-aPhY|~DPF{ybd{YQ#he_$@j8untP_&(ThkNz2fvJaxOoP0Zh(tv!`;&-qfD)bWh;rr#m$`_q2~O{Ri1C{EJ=
BRl(EAOKiCvMgk_w4leE7I1iE<cSigSs(^~VvxiQ}|Wkn)N>;WZ{Eihq&q;$Vue1kYJQi!BYtsdbAr#aIVWi%pJW_nC`YRvRQbi)vcbm;{T1<ZGL-i<b
xwX+?{sF0uo1i@ceZb?1ygB)bBMj7peLvHXlm?x`+yj9LnA9ZZaF)R!|XjD&K<K*fx{Y4@BIjN@ssM8k~cGm+D0jRn~Q!+DJlth}F7jT*|=%0P`MKqnp
9jn}aO&wP#~L>AhRj<dUZAIgroEE}|_j^6M3(Cd!>hO05}kIn%hJui?9Co+mzkW3eXI<b(9H;W!6kpfI*mK%`+e>XaXkvbTh4m*)UC<_eRk#Am0*w&GZ
d)4J&k^s5>1vHWp6rPw%k~lR*0<w}|W1l00l7`1dDmRk3O)BmIlNRrg{ZW%BpMkjQlPKBb<Fu2G8qi-5le&n;?Us}p@G5xLlq<@b(=U`R&nnwXl$StX!
|9aRhUK&!l>0ld$^4ZCNUkEll`iqwij<W}y*o9Wm0t8M+%A=H6bRzpm2+98I!~2-pX|MwmDOEDVpo;!9RobImKn}7^-`9_;?00LmfSFn<wTbiUOAvqmv
?AL1GkrfH?upUmx;}#1f7^J{Sdu9m{Ii<osO7mz@O%=n2Ysbu6LN@l~jMSnDbD1rMa0CWO$-lnV@)yotByXv=?K~ngW`fZSk4}b=WU?nkho>xciz!_tm
a9n#L^|z$lvwy*u4Qn@sB1nLe9Ufp*b(n^^l|Bg~t6eBXbGn~wC9PWGF)hXsd7oGNS6PgI;iWRQW<oI|K<K#81f0<BLToX<qm5@?**d2<E4ohcWf`;47
jD*lOuoy)XbxBs2x#1Sf7o?3Gg{N<jI=L0!Zo~2?hVN0IMf)wX9p3hMymsg)sh5?O0pL^WUqHUj!ruEHtpVcfIC<mYTcN#NrpdH=EqtKvPdRc0Aps+6f
&O@OSDLVGAp&h!BQSPBG$(H`6p-K&8)xM!;s+xSqp_m{B^u(dI{Mxa?q0D32BDSJ;NVeDBqOJeeWKyExw^(f*qeW?r^;x4<Sm{>|qi*T~?>D1}8@|)<q
o^bvUah0)z)-Neq&s_;2^XZ0N&z-4q_e>r{CcF{bv{ZBrGO5tnQ5h!S_m5-rI|t26Tqd&Zh+8TrP?h<u7;)G%~L-zrXjkrPWGlUbtsY6ra&3dfhwl1O1
7<)rmzBiv)-o1#;=~vr){jW$FZmKD7U8gr}a)ee_p5m(dFsmsB7Lp|D34ak<+hXsT##3AL^-8;1jBwsa|a@tAwdy$F*&DsgwuMZrQ2P5d^{`sn)C<JFT
h(%$gz)stN5!bRnt_MhNYasxzqASkS6$M!t!*s~CEhn6#@(3FKs&t8lc@7xt^7X+aowtK{^flY^`G#z+1RtNTY`2hglCqT0WOtcU?9yJW2LmhQSAto+d
UWhbruZ*j)Et^xgJn_8{|QdX}=u5%pDVvDaX(K8;NuQ-gz#<s6J3BrOfuUja&9zn0EC@SsYujhZ0W9G0|+RIFLu!`>kh-I+9b&chku;bMfkn*t~(-b*3
u{O#KdUUZln5v*Jv2;PgM~<<Gm*yvwvbU@^QNFUx{@)B_veBZB-0ZVE3r1C=v!3a5^I5aDWZ*KSv&1;{+DWt!>D}g{v@U&#g?6+z9sBnBv~iTwJfpOQ_
xTYQw2CVmu)ehFuKwN@wO(0g#$L6B?KS}CwTp1PPM5W+X6T&{wb+|08Kkx?S>Om4wooTLx81gBR5cWKw=Fdgnvu6?lM123w|wez&l$JCh7R}wxAOKI9w
N8)CPTw3xH&QgyMVYwQ25bLxKrp6PT{!MIJQ%;xZ5bwtC6_%cx5+QxcZ63@*KHOVzW{bxsf1-RX@3;R9B9uxxjk}Us}29P_~k?x-F+&ZsfW}4sL!Qx{z
d4#4Ng*R9cbxx}EstVU4<?9_VdQy115$kXpLD3kFb(y3KOrHyXPLNGQcayEyl`E=IdO7c9k5yG=k!GZ?#eFHEKCyOc?QZ0Wn*X`w*)yYovscE7v|!o;p
wyh)=j`&qo9kcETxy#Ul%zGJ-{vgXjny;cXmxjnsD@Y+zUz47WH(U`stGFMH5z8~v0ZP&g^ky5mtzF!l0f@r?diWSf?zVqAPBqzTlALoqbzh1dNQe?kq
d%Yw!zno$e5k9}T-_iT(zs!_%+W)`>0)mJ+z(F0>X??&}inG#)z+0KHP{Y7?BQ*OVz<9&GR>;AGh!wYp!K$8;p3TACSFozA!TgO_9qGbL$N$di!pBlnH
CV#d9$v78!rR@t`>Vq21Vev-!wxKB>DR*_#XQ1D!&=h9bS=Ym&0bWY!+5cDud>6M7Wox?#02To7#qZeQaLda#E-wNLnXwM-C_c`#JRndu8qXaUkg+A#P
+P9&Yr~zNSEA9#WkN*Rg%R(wYVo=#eUf?l4!+(Vf;HL#gvk|TpPvCvUj>x#nUi-qf5o@f5+FI#u<ofdR4|Zgc&v6##@;<k`cyfWz*(n#<1ur2HwWegz2
O)#|3Li2};LBL}S_V$9Q&1Yahp~eS4nL$MEcVwn)eGUNuz1$M|7|KzztyW%scy$c2%)LO;mrS!I4}$nYc7azM!#Cc;nP$!^l~j)%#r%>?SP$;i!x`mo9
AZye?2$|htwr5wtVt1&+;%9=zH=t0V?J{APL%FS@8=6A~n%O94-%bRLC=O4?UBVuEl%dxJ+XJN~_=Fp5O%jD@!C^gIg0;Dm#%p)G1HnPk=0$W|e%uU<l
uN2Hp-YsL~%*u0Rq&>|0U%*Z(%?ou{;zP}6(vm9N&9*1iuiVZt74Ct#&TjX_&qB`4QqB7H&f6WEz!T2{9MX(k&qVk~tl7_f&@ftf&xpQOzkSewbK+-%(
M6&gVgk`y9E7E0(VQ{myWP>uWOTgd(bnli_=M5qhFAOD(edZR3VzY~kNSS0(pv04xf9ZVVUW(P(>A?WD?Zaq{u0=p)1R(O!CTYGk(a+!)Ce@%&oR^+f=
^xw)Fo%g6uHz*fYKwN)WrBNJfzjEJv-OA)y&V3<$KlCV8W%1)$wbA|76xt)MKV?)?W-RAWzoU7{~z;*4Z0`>3!DYszAW0*Qh{yI}+FNvql}g*Y`-ecaP
XS+Jg-z*q%_Nh1b~R#-}IH*(g>UmoM2%!KU$}*-?jY_*U6g3sSuU*`SiD@nhMhayZ0`*}2_!*s$5kBNvzK+6Kb~6QJ5TCPFV}+LxJ^hK1U(dq%>5+RLK
rW=`7djSQ7)+oPO88<yLwz~Y7f+#*?Z9=O~^@IBGe+;bJjN=V$Z^=L7a-2gV0jLqFJ^h)l@-Id_vUn$*}n6Bzg-Q10sF}~gDLhG|!-a3c9Y<b?L86P%a
-n0}InH%1?J7J#U-pY)x90A`Y%IO5b-*MGac3$6kv_9id--)3rm)YO8(RL@h;20JM3)J8-3u;0%;A1Vp7w_PXbVNC2;GaDLe*)n9Nw(u3;Uc(Vk$B-Nc
Jic1;ZjnJy&d6cK5my7;pXls9;V^=2QU+s;ud;T*c9TXD52BH;@D>9M+)NRdCbw3;~wkQZ<FImP?|S*<E{jYRITIK<rcr|<N9HWCo$w8r3Ps&<W6J1!l
L9;z^+39<oSc$T?FMZ{*d9U<xw%HaXIByK(EA1<&R-d;&tVnF_^CH<~2k+wEX5pgc}3@=4)ovc^T%Q*_cIf=B5W^OXudNtG<f(=GFi)9R=q1J|4jE=Lm
8!?ce7Uz71W+=N?W27%k@^(y@v+=O`?A=1AvDiU5CZ=U?Zm_pRs!<bl8E=sf5s>~82xDs~$~=x)wt-hb&pQl)Zb=|(Bcxkl+rX60nX>2kIfF-+-v>GUs
o>HbsWn8@ppRfVRx>!?j~{AKIhkb3?e>;~q4T3YNt%WC-}>~OU8R@>}{MACYW?51QCGd=9T@;Wmf?L+|%*Ou+vMZQuP?df8^X#egFbwLCx?iETOd_L|@
6btsW?r!PF^)v3js8b4Y?)`>8j?(X1s2sL=?_SM+;f?QsCl{<L@Ekw&MMdyrdZ>li@Zdt-T&wX6M9vXz@trQklFaeLbk1+1@zFx`a%A!8N1pIn@$#N#=
>GB*vozYZ@*Me7qsa0;hXIE$@^-8>SbFlkm8>KP^8y?(>cR6KRYK6_^B+vM**)`6iPegh^HHnmfJpOTR%WQ@^UaWw%|P@2Z$$C~^vnhcgKzZGe+#iy^!
t89k52VG${pBu^+c9|MOO7!#5dn&_4WR78>03}sk`mO_E7@sI%oD(HPieJ_GslSTW|K*I}TW5_XXZJW`*|=W^*OX_eFN~f&%w`&!!9Y_m(GM;S~5%YSv
>c_;s_D`D^%!jcblT_|=pyqnh~@=w!LJ`5okzHR$<ZJJ)Mc`M(BEw7&WM^_1q)`XTXWLR|XlBu5b^`t3hY5UTqT9^37~`=+r9GJE^9?KoRg`?l>t<?{Q
wyql3H`|{NaEK2;LM|k`!{SiHQk{JCILrLBu{W_a$hWGtP(3tB>{e=4uHTnIZRowT@{im8MN>2U8^-a`|{nBNpI?(<N^u^G3{+pl1Q@H--BM`Uv{^?}?
LrMQ)dG<#y|JqL=>E8d_P7ViV|JzW|ALa
"""
